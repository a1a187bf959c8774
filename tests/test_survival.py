"""Kills, signals, full disks, losses that are no numbers, and processes that die or hang: what is left of the run."""

import csv
import errno
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import torch
from commands import CALLBACKS, ENVIRONMENT, Process, error, start_train, train
from test_train import assert_same_run, load, metrics
from timm.optim import Muon

from avmae.errors import InputError
from avmae.runs import folder as run_folders
from avmae.runs.environment import record_environment
from avmae.runs.folder import LAST, PREVIOUS, settle_run
from avmae.training.checkpoints import SafeCheckpointIO
from avmae.training.loggers import RunCSVLogger
from avmae.training.nonfinite import skip_if

ARGUMENTS = ("name=run", "trainer.max_epochs=20", "trainer.log_every_n_steps=1", "model.drop_path=0.5")
"""40 steps in which a bit that is lost would show."""
LONG = ("name=run", "trainer.max_epochs=2000", "data.batch_size=2", "data.val_groups=0")
"""A run that is still going when something happens to it."""
Start = Callable[..., Process]


@pytest.fixture(scope="module")
def whole(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of an uninterrupted run, in which the training process reads by itself."""
    folder = tmp_path_factory.mktemp("whole")
    train(*ARGUMENTS, "hydra.run.dir=run", "callbacks.best.save_top_k=2", cwd=folder, miniature=miniature)
    return folder / "run"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts trainings in the test's folder, whose output goes to `printed.txt`; what a failed test leaves is ended."""
    processes: list[Process] = []

    def start(*overrides: str, **how) -> Process:
        processes.append(start_train(*overrides, cwd=tmp_path, output=tmp_path / "printed.txt", **how))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()


def wait_for(found: Callable[[], object], process: Process, output: Path | None = None) -> None:
    while not found():
        assert process.poll() is None, output.read_text() if output else "the run ended early"
        time.sleep(0.005)


def trained(folder: Path, rows: int) -> Callable[[], bool]:
    """Whether a run has logged so many rows."""
    return lambda: any(len(file.read_text().splitlines()) > rows for file in folder.glob("*/metrics.csv"))


def descendants(pid: int) -> list[int]:
    return [process.pid for process in psutil.Process(pid).children(recursive=True)]


def running(pids: list[int]) -> list[int]:
    """Those that are there, zombies apart."""
    found = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            found += [pid] if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE else []
    return found


def gone(pids: list[int]) -> bool:
    """Whether all have ended; multiprocessing's own resource tracker does so when it has seen the last one end."""
    end = time.monotonic() + 20
    while running(pids) and time.monotonic() < end:
        time.sleep(0.05)
    return not running(pids)


def slurm(folder: Path) -> dict[str, str]:
    """Environment of a SLURM job whose `scontrol` writes down what it is asked for."""
    program = folder / "bin/scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n')
    program.chmod(0o755)
    return {"SLURM_JOB_ID": "17", "PATH": f"{program.parent}:{ENVIRONMENT['PATH']}"}


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
    (folder,) = (tmp_path / "logs/run").iterdir()
    step = load(folder / "checkpoints" / LAST)["global_step"]
    assert 0 < step < 40
    assert [int(row["step"]) for row in metrics(folder) if row["train/loss"]] == list(range(step))

    if sent == signal.SIGUSR1:
        assert (tmp_path / "asked").read_text() == "requeue 17\n"
        again = start(*arguments, miniature=miniature, env=env | {"SLURM_RESTART_COUNT": "1"})
        assert again.wait(120) == 0, output.read_text()
    else:
        train(*arguments, "resume=last", cwd=tmp_path, miniature=miniature)
    assert list((tmp_path / "logs/run").iterdir()) == [folder], "it goes on in its own folder"
    assert_same_run(whole / "checkpoints" / LAST, folder / "checkpoints" / LAST)
    rows = [[(r["step"], r["train/loss"]) for r in metrics(run) if r["train/loss"]] for run in (whole, folder)]
    assert rows[0] == rows[1], "nothing is missing from the curve either"


def submitted(process: Process) -> list[int]:
    """The processes in which submitit runs the jobs of a multirun."""
    found = []
    for pid in descendants(process.pid):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            found += [pid] if "submitit.core._submit" in psutil.Process(pid).cmdline() else []
    return found


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


def test_a_job_of_slurms_goes_on_in_its_folder_only_if_it_was_queued_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "sweep/3"
    SafeCheckpointIO().save_checkpoint(checkpoint(1), run / "checkpoints" / LAST)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    record_environment(run, None)

    def found(**environment: str) -> str | None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return settle_run("logs", "run", run_dir=str(run), swept=True)[1]

    assert found() is None
    assert found(SLURM_RESTART_COUNT="1") == str(run / "checkpoints" / LAST)
    assert found(SLURM_JOB_ID="18") is None
    assert found(SLURM_JOB_ID="17") is not None
    spoil(run / "checkpoints" / LAST, "cut off")
    assert found() is None


def test_a_job_that_was_queued_again_goes_on_with_what_the_same_command_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    found = {}
    for fold in (1, 2, 3):
        monkeypatch.setattr(sys, "argv", ["train.py", f"data.fold={fold}"])
        run, found[fold] = settle_run(str(tmp_path), "run")
        if fold < 3:
            SafeCheckpointIO().save_checkpoint(checkpoint(fold), Path(run, "checkpoints", LAST))
            record_environment(run, None)
    assert found == {1: None, 2: None, 3: None}
    monkeypatch.setattr(sys, "argv", ["train.py", "data.fold=1"])
    run, resumed = settle_run(str(tmp_path), "run")
    assert resumed == f"{run}/checkpoints/{LAST}"
    assert load(Path(resumed))["global_step"] == 1


def test_runs_that_begin_in_the_same_second_have_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = staticmethod(lambda: datetime(2026, 1, 1))

    monkeypatch.setattr(run_folders, "datetime", Clock)
    folders = [settle_run(str(tmp_path), "run") for _ in range(3)]
    first = f"{tmp_path}/run/2026-01-01_00-00-00"
    assert folders == [(first, None), (f"{first}_2", None), (f"{first}_3", None)]


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_processes_that_torchrun_or_slurm_starts_are_told_what_the_first_decides(launcher: str, tmp_path: Path) -> None:
    script = "from avmae.runs.launch import on_first_process as f; import os; print(f(os.getpid)); f(lambda: 1 / 0)"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = ("RANK", "WORLD_SIZE") if launcher == "torchrun" else ("SLURM_PROCID", "SLURM_NTASKS")
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "SLURM_JOB_ID": "17", "SLURM_NTASKS_PER_NODE": "2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script], env=ENVIRONMENT | address | {names[0]: str(n), names[1]: "2"}, **pipes
        )
        for n in range(2)
    ]
    (first, failed), (told, nothing) = (process.communicate(timeout=120) for process in processes)
    assert first == told == f"{processes[0].pid}\n"
    assert "ZeroDivisionError" in failed
    assert nothing == "", "one says what is wrong"
    assert [process.returncode for process in processes] == [1, 1]


def test_processes_of_an_srun_write_to_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    for tasks, step, again in (("1", "0", "0"), ("2", "0", "0"), ("2", "1", "0"), ("2", "0", "1")):
        environment = {"JOB_ID": "17", "NTASKS": tasks, "STEP_ID": step, "RESTART_COUNT": again}
        for name, value in environment.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        folders.append(settle_run(str(tmp_path), "run")[0])
    assert folders[1:] == [f"{tmp_path}/run/{name}" for name in ("17.0", "17.1", "17.0_1")]
    assert folders[0] not in folders[1:]


@pytest.mark.parametrize(("changed", "was"), [("seed=1", "seed=0"), ("data.val_groups=0", "data.val_groups=1")])
def test_a_run_goes_on_only_as_what_it_was(
    changed: str, was: str, whole: Path, miniature: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(whole, tmp_path / "run")
    arguments = (*ARGUMENTS, "trainer.max_epochs=21", f"resume={copy}/checkpoints/{LAST}", changed)
    assert was in error(train(*arguments, cwd=tmp_path, miniature=miniature, ok=False))


@pytest.mark.parametrize(("limit", "steps"), [("trainer.max_epochs=3", 6), ("trainer.max_steps=3", 3)])
def test_what_a_run_ends_with_is_saved_however_seldom_it_saves(
    limit: str, steps: int, miniature: Path, tmp_path: Path
) -> None:
    train("callbacks.last.every_n_epochs=2", limit, "hydra.run.dir=run", cwd=tmp_path, miniature=miniature)
    assert load(tmp_path / "run/checkpoints" / LAST)["global_step"] == steps


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
    (folder,) = (tmp_path / "logs/run").iterdir()
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
    (folder,) = (tmp_path / "logs/run").iterdir()
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
    (folder,) = (tmp_path / "logs/run").iterdir()
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


def test_several_best_checkpoints_are_kept_if_asked_for(whole: Path) -> None:
    by_loss = sorted((float(row["val/loss"]), int(row["epoch"])) for row in metrics(whole) if row["val/loss"])
    expected = {f"best_{epoch:04d}.ckpt" for _, epoch in by_loss[:2]}
    assert {file.name for file in (whole / "checkpoints").iterdir()} == expected | {LAST, PREVIOUS}


def test_a_run_records_how_it_was_started(whole: Path) -> None:
    (start,) = json.loads((whole / "environment.json").read_text())
    assert "-m avmae.train" in start["command"]
    assert "model.drop_path=0.5" in start["command"]
    assert start["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert (start["resumed"], start["slurm_job"]) == (None, None)
    top = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    if top.returncode == 0:
        assert start["git"]["avmae"].startswith(top.stdout.strip())


def checkpoint(step: int) -> dict:
    return {"state_dict": {"weight": torch.full((1000,), float(step))}, "global_step": step}


def spoil(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut off":
        path.write_bytes(content[: len(content) // 2])
    elif how == "a byte differs":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["cut off", "a byte differs", "empty", "gone"])
def test_resume_takes_the_checkpoint_before_a_damaged_one_and_says_so(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run/2026-01-01/checkpoints"
    io = SafeCheckpointIO()
    for step in (1, 2, 3):
        io.save_checkpoint(checkpoint(step), folder / LAST)
    assert {file.name for file in folder.iterdir()} == {LAST, PREVIOUS}
    assert load(folder / LAST)["global_step"] == 3
    spoil(folder / LAST, how)
    run, resumed = settle_run(str(tmp_path), "run", "last")
    found = Path(resumed)
    assert found == Path(run, "checkpoints", PREVIOUS)
    assert load(found)["global_step"] == 2
    assert (str(folder / LAST) in capsys.readouterr().err) == (how != "gone")
    spoil(folder / PREVIOUS, how)
    with pytest.raises(InputError, match="no checkpoint"):
        settle_run(str(tmp_path), "run", "last")


def test_what_cannot_be_saved_is_reported_and_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    io, path = SafeCheckpointIO(), tmp_path / "checkpoints" / LAST
    path.parent.write_text("in the way, for root too")
    io.save_checkpoint(checkpoint(1), path)
    assert str(path) in capsys.readouterr().err
    assert list(io.failures) == [str(path)]
    path.parent.unlink()
    io.save_checkpoint(checkpoint(2), path)
    assert not io.failures
    io.save_checkpoint({"state_dict": {"weight": torch.tensor([1.0, float("inf")])}}, path)
    assert "weight is not finite" in capsys.readouterr().err
    assert load(path)["global_step"] == 2, "the last good one stays"


def test_a_disk_without_room_does_not_stop_training_but_the_run_fails_in_the_end(
    start: Start, miniature: Path, tmp_path: Path
) -> None:
    output = tmp_path / "printed.txt"
    arguments = ("hydra.run.dir=run", "trainer.max_epochs=3", "trainer.log_every_n_steps=1")
    # Larger files fail half-way.
    process = start(*arguments, miniature=miniature, file_size=100_000)
    assert process.wait(120) == 1
    printed = output.read_text()
    assert printed.count("cannot save") == 6, "3 epochs' last.ckpt and best.ckpt"
    assert "last.ckpt could not be saved: [Errno 27] File too large" in error(printed)
    assert len([row for row in metrics(tmp_path / "run") if row["train/loss"]]) == 6
    assert not list((tmp_path / "run/checkpoints").iterdir()), "nothing half-written stays"


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", ["adamw", "unfused adamw", "muon"])
def test_a_gradient_that_is_not_finite_changes_nothing(kind: str, first: bool) -> None:
    finite = [torch.randn(4, 4), torch.randn(4, 4)]
    poisoned = torch.tensor([float("nan")] + [1.0] * 15).reshape(4, 4)

    def steps(*gradients: torch.Tensor) -> list[torch.Tensor]:
        """All that there is after them."""
        weight, bias = torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4))
        optimizer: torch.optim.Optimizer = (
            Muon([weight, bias], lr=0.1, weight_decay=0.1)
            if kind == "muon"
            else torch.optim.AdamW([weight, bias], lr=0.1, fused=kind == "adamw")
        )
        for gradient in gradients:
            weight.grad, bias.grad = gradient.clone(), gradient[0].clone()
            skip_if(~torch.nn.utils.clip_grad_norm_([weight, bias], 1.0).isfinite(), optimizer)
            optimizer.step()
        state = [value for of in optimizer.state.values() for value in of.values() if torch.is_tensor(value)]
        return [weight.detach(), bias.detach(), *state]

    place = 0 if first else 1
    assert_equal(steps(*finite[:place], poisoned, *finite[place:]), steps(*finite))
    assert not torch.equal(steps(*finite)[0], steps(finite[0])[0])


def assert_equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def test_steps_without_a_finite_loss_are_skipped_until_there_are_too_many(
    start: Start, miniature: Path, tmp_path: Path
) -> None:
    poison = ("+callbacks.poison._target_=poison.Poison", "+callbacks.poison.steps=[1,5,6,7,8]")
    arguments = ("hydra.run.dir=run", "trainer.max_epochs=9", "trainer.log_every_n_steps=1", *poison)
    output = tmp_path / "printed.txt"
    arguments = (*arguments, "callbacks.nonfinite.limit=3")
    process = start(*arguments, miniature=miniature, env=CALLBACKS)
    assert process.wait(120) == 1
    message = error(output.read_text())
    for part in ("3 steps in a row", "step 8", "optim.base_lr", "optim.clip_norm", "precision", "skipped.jsonl"):
        assert part in message
    lines = [json.loads(line) for line in (tmp_path / "run/skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 6, 7, 8]
    assert all(len(line["clips"]) == 4 and all(Path(clip).is_file() for clip in line["clips"]) for line in lines)
    rows = {int(row["step"]): row for row in metrics(tmp_path / "run") if row["train/loss"]}
    assert rows[1]["train/loss"] == "nan"
    assert float(rows[4]["train/loss"]) > 0, "one bad step does no harm"
    assert float(rows[4]["train/skipped"]) == 1
    last = load(tmp_path / "run/checkpoints" / LAST)
    assert all(value.isfinite().all() for value in last["state_dict"].values())


@pytest.mark.parametrize(("strategy", "kind"), [("single", "muon"), ("ddp", "adamw"), ("fsdp", "adamw")])
def test_a_loss_that_is_not_finite_skips_the_step_of_all_processes_whatever_its_gradient(
    strategy: str, kind: str, start: Start, miniature: Path, tmp_path: Path
) -> None:
    poison = ("+callbacks.poison._target_=poison.PoisonLoss", "+callbacks.poison.steps=[1,2]")
    keep = ("callbacks.last.filename='step{step}'", "+callbacks.last.save_top_k=-1", "callbacks.best.save_top_k=0")
    every = ("callbacks.last.every_n_epochs=null", "callbacks.last.every_n_train_steps=1")
    how = (f"strategy={strategy}", f"trainer.devices={1 if strategy == 'single' else 2}", f"optim.kind={kind}")
    arguments = ("hydra.run.dir=run", "trainer.max_steps=4", "trainer.clips_per_step=4", "optim.warmup=0", *poison)
    process = start(*arguments, *keep, *every, *how, "data.batch_size=1", miniature=miniature, env=CALLBACKS)
    assert process.wait(120) == 0, (tmp_path / "printed.txt").read_text()
    lines = [json.loads(line) for line in (tmp_path / "run/skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3]
    assert all(len(line["clips"]) == 4 for line in lines)
    saved = [load(file)["state_dict"] for file in sorted((tmp_path / "run/checkpoints").glob("step*.ckpt"))]
    same = [all(torch.equal(value, after[name]) for name, value in before.items()) for before, after in pairwise(saved)]
    assert same == [True, True, False], "steps 2 and 3 change nothing, step 4 does"


def test_a_job_that_fails_ends_neither_the_sweep_nor_in_a_traceback(
    start: Start, miniature: Path, tmp_path: Path
) -> None:
    poison = ("+callbacks.poison._target_=poison.Poison", "+callbacks.poison.steps=[0],[99],[1]")
    arguments = ("-m", *poison, "callbacks.nonfinite.limit=1", "trainer.max_steps=4", "logger=wandb")
    process = start(*arguments, "hydra.sweep.dir=sweep", miniature=miniature, env=CALLBACKS)
    assert process.wait(240) == 1
    printed = (tmp_path / "printed.txt").read_text()
    assert "Traceback" not in printed
    assert all(f"error: job {job}: loss or gradient were not finite" in printed for job in (0, 2))
    with (tmp_path / "sweep/sweep.csv").open() as stream:
        assert [row["job"] for row in csv.DictReader(stream)] == ["1"]
    for job in ("0", "1", "2"):
        runs = (tmp_path / "sweep" / job / "wandb").glob("offline-run-*")
        assert len(list(runs)) == 1, "a job that failed is a W&B run of its own, too"


@pytest.fixture
def clip(miniature: Path, tmp_path: Path) -> Path:
    """A training clip of a copy of the miniature."""
    root = Path(shutil.copytree(miniature, tmp_path / "data"))
    return sorted((root / "UCF-101").glob("*/*_g08_*.avi"))[0]


@contextmanager
def block(clip: Path, process: Process, output: Path) -> Iterator[None]:
    """Let reading a clip hang, as of a file on a dead server, once the reading process has come to it."""
    fifo = clip.with_suffix(".fifo")
    os.mkfifo(fifo)
    fifo.replace(clip)
    while True:
        assert process.poll() is None, output.read_text()
        try:
            # Only where a process has the other end.
            writer = os.open(clip, os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            time.sleep(0.005)
    try:
        yield
    finally:
        os.close(writer)


@pytest.mark.parametrize("fate", ["hangs", "dies"])
def test_a_reading_process_that_fails_ends_the_run_with_its_clip(
    start: Start, fate: str, clip: Path, tmp_path: Path
) -> None:
    output, root = tmp_path / "printed.txt", clip.parents[2]
    timeout = "data.timeout=3" if fate == "hangs" else "data.timeout=100"
    arguments = (*LONG, "data.workers=1", "trainer.log_every_n_steps=1", timeout)
    process = start(*arguments, miniature=root)
    wait_for(trained(tmp_path / "logs/run", 3), process, output)
    (reader,) = descendants(process.pid)
    with block(clip, process, output):
        if fate == "dies":
            os.kill(reader, signal.SIGKILL)
        assert process.wait(120) == 1, output.read_text()
        if sys.platform == "linux":
            assert gone([reader]), "there the kernel ends it, hanging as it is"
    message = error(output.read_text())
    assert f"reading process 0 of 1 (pid {reader}), reading {clip} for" in message
    assert ("no batch came for 3 s (data.timeout)" if fate == "hangs" else "ended by SIGKILL") in message
    assert gone([reader])
    assert len(list((tmp_path / "logs/run").glob(f"*/checkpoints/{LAST}"))) == 1, "from which it can go on"


def test_a_training_process_that_dies_ends_all_and_is_named(start: Start, miniature: Path, tmp_path: Path) -> None:
    output = tmp_path / "printed.txt"
    arguments = (*LONG, "strategy=ddp", "trainer.devices=2", "data.workers=1", "trainer.log_every_n_steps=1")
    process = start(*arguments, miniature=miniature)
    wait_for(trained(tmp_path / "logs/run", 5), process, output)
    family = descendants(process.pid)
    # What a process put into its own environment shows in the processes that it started.
    (second,) = {
        reader.ppid()
        for reader in map(psutil.Process, family)
        if reader.ppid() != process.pid and reader.environ().get("RANK") == "1"
    }
    os.kill(second, signal.SIGKILL)
    assert process.wait(120) == 1, output.read_text()
    assert "process 1 of 2 failed: SIGKILL" in error(output.read_text())
    assert gone(family)


def test_two_processes_save_by_the_clock_and_at_ctrl_c_and_leave_nothing(
    start: Start, miniature: Path, tmp_path: Path
) -> None:
    output, temporary = tmp_path / "printed.txt", tmp_path / "temporary"
    temporary.mkdir()
    arguments = (*LONG, "strategy=ddp", "trainer.devices=2", "data.workers=1", "callbacks.last.every_n_epochs=1000")
    often = "callbacks.in_time.minutes=0.01"
    process = start(*arguments, often, miniature=miniature, env={"TMPDIR": str(temporary)})
    wait_for(lambda: list((tmp_path / "logs/run").glob(f"*/checkpoints/{LAST}")), process, output)
    family = descendants(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(120) == 128 + signal.SIGINT, output.read_text()
    assert gone(family)
    assert not list(temporary.iterdir())
    (folder,) = (tmp_path / "logs/run").iterdir()
    step = load(folder / "checkpoints" / LAST)["global_step"]
    assert f"SIGINT: step {step} is saved" in output.read_text()


def test_rows_that_do_not_fit_on_the_disk_wait_for_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger, file = RunCSVLogger(str(tmp_path)), tmp_path / "metrics.csv"

    def log(step: int, **values: float) -> None:
        logger.log_metrics(values, step)
        logger.save()

    log(0, loss=1.0)
    written = file.read_text()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(written) + 2, hard))
    try:
        log(1, loss=0.5)
        log(2, loss=0.25, top1=0.125)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_text() == written, "no half row"
    assert capsys.readouterr().err.count("wait for room") == 1
    log(3, top1=0.0625)
    assert [(row["step"], row["loss"], row["top1"]) for row in metrics(tmp_path)] == [
        ("0", "1.0", ""),
        ("1", "0.5", ""),
        ("2", "0.25", "0.125"),
        ("3", "", "0.0625"),
    ]
