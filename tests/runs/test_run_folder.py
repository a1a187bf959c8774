"""Where a run writes, and what it resumes from."""

import sys
from datetime import datetime
from pathlib import Path

import pytest
from run_files import checkpoint, load

from avmae.errors import InputError
from avmae.runs import folder as run_folders
from avmae.runs.environment import record_environment
from avmae.runs.folder import LAST, LATEST, PREVIOUS, discard_unused, link_latest, settle_run
from avmae.runs.history import find_runs
from avmae.training.checkpoints import SafeCheckpointIO


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


def test_processes_of_an_srun_write_to_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    for tasks, step, again in (("1", "0", "0"), ("2", "0", "0"), ("2", "1", "0"), ("2", "0", "1")):
        environment = {"JOB_ID": "17", "NTASKS": tasks, "STEP_ID": step, "RESTART_COUNT": again}
        for name, value in environment.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        folders.append(settle_run(str(tmp_path), "run")[0])
    assert folders[1:] == [f"{tmp_path}/run/{name}" for name in ("17.0", "17.1", "17.0_1")]
    assert folders[0] not in folders[1:]


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


class TestLatest:
    def test_leads_to_the_newest_run_and_is_none_itself(self, tmp_path: Path) -> None:
        logs = str(tmp_path)
        for number in (1, 2):
            run, _ = settle_run(logs, "run")
            SafeCheckpointIO().save_checkpoint(checkpoint(number), Path(run, "checkpoints", LAST))
            link_latest(run, logs, "run")
        link = tmp_path / "run" / LATEST
        assert link.readlink() == Path(Path(run).name)
        assert settle_run(logs, "run", "last") == (run, f"{run}/checkpoints/{LAST}")
        assert settle_run(logs, "run", f"{link}/checkpoints/{LAST}") == (run, f"{run}/checkpoints/{LAST}")
        assert sorted(find_runs(tmp_path)) == []
        Path(run, "metrics.csv").touch()
        assert find_runs(tmp_path) == [Path(run)]

    def test_is_not_made_of_folders_elsewhere_or_in_place_of_something_else(self, tmp_path: Path) -> None:
        run, _ = settle_run(str(tmp_path / "logs"), "run", run_dir=str(tmp_path / "own"))
        link_latest(run, str(tmp_path / "logs"), "run")
        assert not (tmp_path / "logs").exists()
        (tmp_path / "logs/run" / LATEST).mkdir(parents=True)
        run, _ = settle_run(str(tmp_path / "logs"), "run")
        link_latest(run, str(tmp_path / "logs"), "run")
        assert {path.name for path in (tmp_path / "logs/run").iterdir()} == {LATEST, Path(run).name}


class TestRefusedRuns:
    def test_leave_nothing(self, tmp_path: Path) -> None:
        run, _ = settle_run(str(tmp_path / "logs"), "run")
        record_environment(run, None)
        Path(run, "checkpoints").mkdir()
        Path(run, "hparams.yaml").touch()
        link_latest(run, str(tmp_path / "logs"), "run")
        discard_unused(run, str(tmp_path / "logs"), "run")
        assert not list(tmp_path.iterdir())

    def test_leave_what_others_or_they_themselves_have_written(self, tmp_path: Path) -> None:
        logs = str(tmp_path / "logs")
        first, _ = settle_run(logs, "run")
        Path(first, "metrics.csv").touch()
        link_latest(first, logs, "run")
        second, _ = settle_run(logs, "run")
        for run in (second, first):
            discard_unused(run, logs, "run")
        assert {path.name for path in Path(logs, "run").iterdir()} == {LATEST, Path(first).name}
        own, _ = settle_run(logs, "run", run_dir=str(tmp_path / "above/own"))
        discard_unused(own, logs, "run")
        assert [path.name for path in (tmp_path / "above").iterdir()] == []
