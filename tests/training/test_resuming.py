"""A run that is continued equals one that was never interrupted, wherever and on however many processes."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from commands import CALLBACKS, error, start_train, train
from run_files import assert_same_run, load, logged, metrics
from running import ARGUMENTS

from avmae.data.sampling import TrainSampler
from avmae.runs.folder import LAST


@pytest.mark.parametrize(
    ("changed", "was"),
    [
        ("seed=1", "seed=0 (now 1); add seed=0 to the command"),
        ("data.val_groups=0", "data.val_groups=1"),
        ("size=base", "size=tiny to the command"),
    ],
)
def test_a_run_goes_on_only_as_what_it_was(
    changed: str, was: str, whole: Path, miniature: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(whole, tmp_path / "run")
    arguments = (*ARGUMENTS, "trainer.max_epochs=21", f"resume={copy}/checkpoints/{LAST}", changed)
    assert was in error(train(*arguments, cwd=tmp_path, miniature=miniature, ok=False))


@pytest.mark.parametrize(
    ("processes", "step", "steps", "left"),
    [
        pytest.param((2, 1), 1, 2, 4, id="two to one"),
        pytest.param((1, 2), 1, 3, 6, id="one to two, between two of its batches"),
        pytest.param((2, 1), 4, 1, 4, id="two to one, accumulated"),
        pytest.param((2, 1), 1, 4, 0, id="two to one, after an epoch's last step"),
    ],
)
def test_another_number_of_processes_goes_on_in_mid_epoch_and_leaves_no_clip_out(
    processes: tuple[int, int], step: int, steps: int, left: int, miniature: Path, tmp_path: Path
) -> None:
    def part(name: str, number: int, *overrides: str) -> None:
        folder = tmp_path / name
        folder.mkdir()
        seen = ("+callbacks.seen._target_=seen.Seen", f"+callbacks.seen.folder={folder}", "data.batch_size=1")
        clips = (f"trainer.clips_per_step={step}",) if step > 1 else ()
        how = ("strategy=ddp", f"trainer.devices={number}", "trainer.log_every_n_steps=1", "hydra.run.dir=run")
        where = {"cwd": tmp_path, "miniature": miniature, "output": folder / "printed.txt", "env": CALLBACKS}
        process = start_train(*seen, *clips, *how, *overrides, **where)
        assert process.wait(240) == 0, (folder / "printed.txt").read_text()

    keep = ("callbacks.last.every_n_epochs=null", f"callbacks.last.every_n_train_steps={steps}")
    part("first", processes[0], *keep, f"trainer.max_steps={steps}")
    part("second", processes[1], "trainer.max_epochs=2", "resume=run/checkpoints/last.ckpt")
    read: dict[int, list[int]] = {0: [], 1: []}
    validated = set()
    for file in (tmp_path / "second").glob("seen*.jsonl"):
        for epoch, clips in map(json.loads, file.read_text().splitlines()):
            read[epoch] += clips or []
            validated |= {epoch} if clips is None else set()
    order = {epoch: [request.index for (request,) in TrainSampler(8, 1, seed=0, epoch=epoch)] for epoch in (0, 1)}
    assert sorted(read[0]) == sorted(order[0][8 - left :])
    assert sorted(read[1]) == list(range(8))
    assert validated == ({0, 1} if left else {1})
    assert len(logged(tmp_path / "run", "train/loss")) == steps + (left + 8) // max(step, processes[1])


@pytest.mark.parametrize("every", [3, 4], ids=["in mid-epoch", "at the end of an epoch"])
def test_killed_and_resumed_equals_uninterrupted_to_the_bit(every: int, miniature: Path, tmp_path: Path) -> None:
    keep = (f"callbacks.last.every_n_train_steps={every}", "callbacks.last.every_n_epochs=null")
    arguments = ("name=run", "trainer.max_epochs=8", "trainer.log_every_n_steps=1", "model.drop_path=0.5", *keep)
    train(*arguments, "logs=whole", cwd=tmp_path, miniature=miniature)
    (whole,) = (tmp_path / "whole/run").glob("[0-9]*")

    process = start_train(*arguments, "logs=cut", cwd=tmp_path, miniature=miniature)
    while not (found := list((tmp_path / "cut/run").glob("[0-9]*/checkpoints/last.ckpt"))):
        assert process.poll() is None, "the run ended before its first checkpoint"
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert load(found[0])["global_step"] < load(whole / "checkpoints/last.ckpt")["global_step"]

    train(*arguments, "logs=cut", "resume=last", cwd=tmp_path, miniature=miniature)
    (cut,) = (tmp_path / "cut/run").glob("[0-9]*")
    assert cut == found[0].parent.parent, "a resumed run goes on in its own folder"
    assert_same_run(whole / "checkpoints/last.ckpt", cut / "checkpoints/last.ckpt")
    losses = [{row["step"]: row["train/loss"] for row in metrics(run) if row["train/loss"]} for run in (whole, cut)]
    assert len(losses[0]) == 16
    # The row of the step in which the checkpoint was saved may be missing, for it is written after it.
    assert losses[1].items() <= losses[0].items()
    assert len(losses[1]) >= 15


def test_resuming_says_where_and_what_has_changed_and_follows_it(miniature: Path, tmp_path: Path) -> None:
    arguments = ("name=run", "trainer.log_every_n_steps=1")
    train(*arguments, "trainer.max_steps=3", cwd=tmp_path, miniature=miniature)
    changed = ("trainer.max_steps=6", "resume=last", "optim.base_lr=1", "data.batch_size=2")
    printed = train(*arguments, *changed, cwd=tmp_path, miniature=miniature)
    (run_dir,) = (tmp_path / "logs/run").glob("[0-9]*")
    assert f"resuming {run_dir}/checkpoints/last.ckpt after step 3" in printed
    for line in ("optim.base_lr: 0.0003 -> 1", "data.batch_size: 4 -> 2", "trainer.max_steps: 3 -> 6"):
        assert f"changed: {line}\n" in printed
    assert printed.count("changed: ") == 3
    rates = [float(row["train/lr"]) for row in metrics(run_dir) if row["train/lr"]]
    # 1 x 2 clips / 256 at its peak, on a cosine of which half is left.
    assert max(rates[:3]) < 1e-5 < 1e-3 < rates[3] < 2 / 256
    kind = error(train(*arguments, "resume=last", "optim.kind=muon", cwd=tmp_path, miniature=miniature, ok=False))
    assert "optim.kind=adamw" in kind


def test_a_checkpoint_that_does_not_say_what_was_loaded_goes_on(miniature: Path, tmp_path: Path) -> None:
    how = {"cwd": tmp_path, "miniature": miniature}
    train("name=run", "trainer.max_epochs=1", **how)
    (file,) = tmp_path.glob("logs/run/[0-9]*/checkpoints/last.ckpt")
    older = torch.load(file, weights_only=True)
    del older["loaded"]
    torch.save(older, file)
    train("name=run", "trainer.max_epochs=2", "resume=last", **how)
    assert torch.load(file, weights_only=True)["epoch"] == 1
