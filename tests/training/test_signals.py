"""Signals of a scheduler and of the keyboard: what is saved, and how the run continues."""

import json
import os
import signal
from pathlib import Path

import psutil
import pytest
from commands import CALLBACKS, Process, train
from run_files import assert_same_run, load, metrics
from running import ARGUMENTS, Start, descendants, slurm, trained, wait_for

from avmae.runs.folder import LAST, PREVIOUS


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signalled_run_saves_within_the_step_and_goes_on_to_the_bit_whatever_the_workers(
    start: Start, sent: signal.Signals, whole: Path, miniature: Path, tmp_path: Path
) -> None:
    output, env = tmp_path / "printed.txt", slurm(tmp_path)
    arguments = (*ARGUMENTS, "data.workers=2")
    process = start(*arguments, miniature=miniature, env=env)
    wait_for(trained(tmp_path / "logs/run", 5), process, output)
    for pid in (*descendants(process.pid), process.pid):
        # As a scheduler does: all processes get it, and where the step takes long, the end of the time as well.
        os.kill(pid, sent)
        os.kill(pid, signal.SIGTERM)
    assert process.wait(120) == 128 + sent, output.read_text()
    assert f"{sent.name}: step" in output.read_text()
    (folder,) = (tmp_path / "logs/run").glob("[0-9]*")
    step = load(folder / "checkpoints" / LAST)["global_step"]
    assert 0 < step < 40
    assert [int(row["step"]) for row in metrics(folder) if row["train/loss"]] == list(range(step))

    if sent == signal.SIGUSR1:
        assert (tmp_path / "asked").read_text() == "requeue 17\n"
        again = start(*arguments, miniature=miniature, env=env | {"SLURM_RESTART_COUNT": "1"})
        assert again.wait(120) == 0, output.read_text()
    else:
        train(*arguments, "resume=last", cwd=tmp_path, miniature=miniature)
    assert list((tmp_path / "logs/run").glob("[0-9]*")) == [folder], "it goes on in its own folder"
    assert_same_run(whole / "checkpoints" / LAST, folder / "checkpoints" / LAST)
    rows = [[(r["step"], r["train/loss"]) for r in metrics(run) if r["train/loss"]] for run in (whole, folder)]
    assert rows[0] == rows[1], "nothing is missing from the curve either"


def submitted(process: Process) -> list[int]:
    """The processes in which submitit runs the jobs of a multirun: children of the one that starts them."""
    (controller,) = psutil.Process(process.pid).children()
    return [job.pid for job in controller.children()]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_that_submitit_queues_again_saves_first_and_goes_on_in_its_own_folder(
    processes: int, start: Start, miniature: Path, tmp_path: Path
) -> None:
    output, sweep = tmp_path / "printed.txt", tmp_path / "sweep"
    arguments = (*ARGUMENTS, "cluster=local", "callbacks.last.every_n_epochs=1000", f"hydra.sweep.dir={sweep}")
    two = ("strategy=ddp", "trainer.devices=2", "data.batch_size=2") if processes == 2 else ()
    process = start("-m", *arguments, *two, miniature=miniature)
    wait_for(trained(sweep, 5), process, output)
    (job,) = submitted(process)
    os.kill(job, signal.SIGUSR2)
    assert process.wait(240) == 0, output.read_text()
    run = sweep / "0"
    first, second = json.loads((run / "environment.json").read_text())
    assert (first["resumed"], second["resumed"]) == (None, str(run / "checkpoints" / LAST))
    assert first["slurm_job"] == second["slurm_job"] is not None
    (log,) = (sweep / ".submitit").glob("*/*_log.out")
    assert "SIGUSR2: step" in log.read_text()
    assert [int(row["step"]) for row in metrics(run) if row["train/loss"]] == list(range(40))
    assert (sweep / "sweep.csv").is_file()


def signalled(number: signal.Signals, step: int, during: str = "validation") -> tuple[str, ...]:
    """Overrides for a signal after so many steps."""
    key = "+callbacks.signalled"
    values = {"_target_": "poison.Signalled", "number": int(number), "step": step, "during": during}
    return tuple(f"{key}.{name}={value}" for name, value in values.items())


def test_a_signal_in_validation_ends_the_epoch_and_the_run_goes_on_to_the_bit(
    start: Start, whole: Path, miniature: Path, tmp_path: Path
) -> None:
    process = start(*ARGUMENTS, *signalled(signal.SIGTERM, 20), miniature=miniature, env=CALLBACKS)
    assert process.wait(120) == 128 + signal.SIGTERM, (tmp_path / "printed.txt").read_text()
    assert "SIGTERM: step 20 is saved" in (tmp_path / "printed.txt").read_text()
    train(*ARGUMENTS, "resume=last", cwd=tmp_path, miniature=miniature)
    (folder,) = (tmp_path / "logs/run").glob("[0-9]*")
    assert_same_run(whole / "checkpoints" / LAST, folder / "checkpoints" / LAST)
    rows = [[(r["step"], r["val/loss"]) for r in metrics(run) if r["val/loss"]] for run in (whole, folder)]
    assert rows[0] == rows[1], "that validation counts"


@pytest.mark.parametrize("every", [1, 1000])
def test_a_signal_in_the_last_validation_ends_the_run_before_its_test(
    every: int, start: Start, miniature: Path, tmp_path: Path
) -> None:
    arguments = ["name=run", "task=classify", "trainer.max_epochs=2", f"callbacks.last.every_n_epochs={every}"]
    arguments += signalled(signal.SIGUSR1, 4)
    env = slurm(tmp_path) | CALLBACKS
    process = start(*arguments, miniature=miniature, env=env)
    output = tmp_path / "printed.txt"
    assert process.wait(120) == 128 + signal.SIGUSR1, output.read_text()
    assert "SIGUSR1: step 4 is saved" in output.read_text()
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
    (folder,) = (tmp_path / "logs/run").glob("[0-9]*")
    assert not (folder / "summary.json").exists()
    assert load(folder / "checkpoints" / LAST)["global_step"] == 4
    steps = [load(path)["global_step"] for path in (folder / "checkpoints").glob(PREVIOUS)]
    assert steps == ([2] if every == 1 else []), "what is saved is not saved again"
    again = start(*arguments, miniature=miniature, env=env | {"SLURM_RESTART_COUNT": "1"})
    assert again.wait(120) == 0, output.read_text()
    assert {"train/loss", "val/top1", "test/top1"} <= json.loads((folder / "summary.json").read_text()).keys()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_in_the_test_queues_the_job_again_for_the_test_alone(
    processes: int, start: Start, miniature: Path, tmp_path: Path
) -> None:
    two = ("strategy=ddp", "trainer.devices=2") if processes == 2 else ()
    # A save by the clock in the last step is no signal.
    often = "callbacks.in_time.minutes=0"
    arguments = ("name=run", "task=classify", "trainer.max_epochs=1", "data.batch_size=2", often, *two)
    env, output = slurm(tmp_path) | CALLBACKS, tmp_path / "printed.txt"
    steps = 4 // processes
    process = start(*arguments, *signalled(signal.SIGUSR1, steps, "test"), miniature=miniature, env=env)
    assert process.wait(120) == 128 + signal.SIGUSR1, output.read_text()
    assert f"SIGUSR1: step {steps} is saved" in output.read_text()
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
    (folder,) = (tmp_path / "logs/run").glob("[0-9]*")
    assert not (folder / "summary.json").exists()
    # Neither the place nor what saves memory makes it another run.
    folder = folder.rename(folder.with_name("moved"))
    train(*arguments, "model.checkpointing=true", "resume=last", cwd=tmp_path, miniature=miniature)
    assert len([row for row in metrics(folder) if row["test/top1"]]) == 1
    assert {"train/loss", "test/top1"} <= json.loads((folder / "summary.json").read_text()).keys()


def test_a_signal_in_the_last_step_of_one_of_two_processes_ends_both(
    start: Start, miniature: Path, tmp_path: Path
) -> None:
    how = ("strategy=ddp", "trainer.devices=2", "data.batch_size=2", "hydra.run.dir=run", "trainer.max_epochs=1")
    process = start(*how, *signalled(signal.SIGTERM, 1, "training"), miniature=miniature, env=CALLBACKS)
    output = tmp_path / "printed.txt"
    assert process.wait(120) == 128 + signal.SIGTERM, output.read_text()
    assert "SIGTERM: step 2 is saved" in output.read_text()
    assert not (tmp_path / "run/summary.json").exists()
    assert load(tmp_path / "run/checkpoints" / LAST)["global_step"] == 2
