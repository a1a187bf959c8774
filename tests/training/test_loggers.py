import csv
import resource
from pathlib import Path

import pytest
from run_files import metrics

from avmae.training.loggers import RunCSVLogger, wandb_logger


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


def write(folder: Path, steps: range, resume: str | None = None, **extra: float) -> None:
    logger = RunCSVLogger(str(folder), resume)
    logger.save()
    for step in steps:
        logger.log_metrics({"loss": float(step), **extra}, step)
    logger.finalize("success")


def test_a_resumed_run_goes_on_after_its_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, range(6))
    write(tmp_path, range(4, 8), resume="last", accuracy=1.0)
    found = rows(tmp_path)
    assert [int(row["step"]) for row in found] == list(range(8))
    assert [row["accuracy"] for row in found] == [""] * 4 + ["1.0"] * 4


def test_a_line_that_a_power_cut_left_in_half_is_dropped(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    with (tmp_path / "metrics.csv").open("a") as stream:
        stream.write("3.0,")
    write(tmp_path, range(3, 5), resume="last")
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [(str(n), f"{n}.0") for n in range(5)]


def test_a_new_run_in_an_old_folder_starts_anew(tmp_path: Path) -> None:
    write(tmp_path, range(6))
    write(tmp_path, range(2))
    assert [int(row["step"]) for row in rows(tmp_path)] == [0, 1]


def test_wandb_without_login_is_offline_says_so_and_keeps_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    first = wandb_logger(str(tmp_path), "avmae", "run")
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert first._offline
    again = wandb_logger(str(tmp_path), "avmae", "run")
    assert again.version == first.version


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
