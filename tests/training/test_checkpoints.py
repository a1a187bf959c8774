"""Checkpoints are whole or not there, and there at the end."""

from pathlib import Path

import pytest
import torch
from commands import error, train
from run_files import checkpoint, load, metrics
from running import Start

from avmae.runs.folder import LAST, PREVIOUS
from avmae.training.checkpoints import SafeCheckpointIO


@pytest.mark.parametrize(("limit", "steps"), [("trainer.max_epochs=3", 6), ("trainer.max_steps=3", 3)])
def test_what_a_run_ends_with_is_saved_however_seldom_it_saves(
    limit: str, steps: int, miniature: Path, tmp_path: Path
) -> None:
    train("callbacks.last.every_n_epochs=2", limit, "hydra.run.dir=run", cwd=tmp_path, miniature=miniature)
    assert load(tmp_path / "run/checkpoints" / LAST)["global_step"] == steps


def test_several_best_checkpoints_are_kept_if_asked_for(whole: Path) -> None:
    by_loss = sorted((float(row["val/loss"]), int(row["epoch"])) for row in metrics(whole) if row["val/loss"])
    expected = {f"best_{epoch:04d}.ckpt" for _, epoch in by_loss[:2]}
    assert {file.name for file in (whole / "checkpoints").iterdir()} == expected | {LAST, PREVIOUS}


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
