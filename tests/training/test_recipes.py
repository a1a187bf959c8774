"""What the recipes add to reconstruction and classification, in whole runs."""

import json
from pathlib import Path

import pytest
import torch
from commands import CALLBACKS, error, run, start_train, train

from avmae.evaluate import evaluate


def load(run_dir: Path) -> dict:
    return torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)


def encoder(state: dict) -> dict[str, torch.Tensor]:
    return {k: v for k, v in state["state_dict"].items() if k.startswith("network.encoder.")}


def test_objectives_besides_reconstruction_are_trained_and_logged(pretrained: Path) -> None:
    summary = json.loads((pretrained / "summary.json").read_text())
    assert summary["train/loss_contrast"] > 0
    parts = sum(summary[f"train/loss_{name}"] for name in ("video", "audio"))
    # The sound's part is a mean over sounding clips, so it counts by their share of the batch in the loss.
    assert summary["train/loss"] < parts + 0.1 * summary["train/loss_contrast"] + 1e-3
    # Of the four validation clips, each once.
    assert summary["val/knn_top1"] in (0, 0.25, 0.5, 0.75, 1)
    absent = load(pretrained)["state_dict"]["network.encoder.modalities.video.absent"]
    assert absent.any(), "the token in place of hidden pictures was never trained"


def test_an_objective_that_the_system_cannot_meet_is_refused(miniature: Path, tmp_path: Path) -> None:
    for wrong, key in (
        (["model=videomae", "task.contrast=1"], "task.contrast"),
        (["model=videomae", "task.hide_audio=0.5"], "task.hide_audio"),
        (["task.hide_video=0.5"], r"model.may_lack=[video,audio]"),
        (["task.hide_audio=0.9", "task.hide_video=0.9"], "at most 1"),
        (["task=classify", "optim=finetune", "model=videomae", "task.drop_audio=0.5"], "task.drop_audio"),
    ):
        assert key in error(train(*wrong, cwd=tmp_path, miniature=miniature, ok=False))


def test_last_is_the_last_and_best_the_best(miniature: Path, tmp_path: Path) -> None:
    """Also where the score does not rise any more: with a rate of next to nothing the first epoch stays the best."""
    arguments = ("task=classify", "optim=finetune", "optim.base_lr=1e-12", "trainer.max_epochs=3")
    printed = train("hydra.run.dir=run", *arguments, cwd=tmp_path, miniature=miniature)
    steps = {
        name: torch.load(tmp_path / f"run/checkpoints/{name}.ckpt", weights_only=True)["global_step"]
        for name in ("last", "best")
    }
    assert steps == {"last": 6, "best": 2}
    assert "testing " in printed
    assert "best.ckpt" in printed


def test_the_full_recipe_trains_and_keeps_the_averaged_weights_as_the_model(finetuned: Path) -> None:
    state = load(finetuned)
    averaged, current = state["state_dict"], state["current_model_state"]
    assert any(not torch.equal(averaged[name], current[name]) for name in averaged)
    assert int(state["averaging_state"]["n_averaged"]) > 0
    assert {"test/top1", "test/top5"} <= json.loads((finetuned / "summary.json").read_text()).keys()


@pytest.mark.parametrize(("groups", "name"), [(1, "best"), (0, "last")])
def test_averaged_weights_are_what_is_tested(groups: int, name: str, miniature: Path, tmp_path: Path) -> None:
    seen = "+callbacks.seen={_target_:seen.Tested,file:tested.pt}"
    averaged = ("callbacks=ema", "callbacks.ema.decay=0.5", "optim=finetune", "optim.base_lr=0.1", seen)
    arguments = ("name=run", "task=classify", "trainer.max_epochs=2", f"data.val_groups={groups}", *averaged)
    # The second time there is nothing left to train.
    for resume in ("null", "last"):
        output = tmp_path / "printed.txt"
        how = {"cwd": tmp_path, "miniature": miniature, "output": output, "env": CALLBACKS}
        assert start_train(*arguments, f"resume={resume}", **how).wait(120) == 0, output.read_text()
        assert "Warning" not in output.read_text()
        (file,) = (tmp_path / "logs/run").glob(f"2*/checkpoints/{name}.ckpt")
        saved, tested = torch.load(file, weights_only=True), torch.load(tmp_path / "tested.pt", weights_only=True)
        assert all(torch.equal(value, tested[key]) for key, value in saved["state_dict"].items())
        assert not all(torch.equal(value, tested[key]) for key, value in saved["current_model_state"].items())


@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_a_probe_leaves_the_encoder_as_it_was(pool: str, pretrained: Path, miniature: Path, tmp_path: Path) -> None:
    ckpt = f"ckpt={pretrained}/checkpoints/last.ckpt"
    setup = ("task=probe", f"task.pool={pool}", "optim=finetune", "trainer.max_epochs=1")
    train("hydra.run.dir=run", *setup, "model.may_lack=[video,audio]", ckpt, cwd=tmp_path, miniature=miniature)
    state, before = load(tmp_path / "run"), encoder(load(pretrained))
    assert encoder(state).keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in encoder(state).items())
    # It starts at zero.
    assert state["state_dict"]["network.heads.audio.weight"].any(), "the head was not trained"
    assert 0 <= evaluate(tmp_path / "run/checkpoints/last.ckpt")["top1"] <= 1


@pytest.mark.parametrize("recipe", ["experiment=probe_ucf101", "experiment=finetune_ucf101_k400", "task=probe"])
def test_what_starts_from_weights_does_not_start_from_nothing(recipe: str, miniature: Path, tmp_path: Path) -> None:
    said = error(run("train", recipe, "data=ucf101", f"data.root={miniature}", cwd=tmp_path, ok=False))
    assert "ckpt must be given: add ckpt=VALUE" in said
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_layer_decay_is_of_what_was_loaded_and_a_resumed_run_knows_it(miniature: Path, tmp_path: Path) -> None:
    how = {"cwd": tmp_path, "miniature": miniature}
    train("hydra.run.dir=pictures", "model=videomae", "trainer.max_epochs=1", **how)
    finetune = ("name=run", "model=avmae", "task=classify", "optim=finetune")
    ckpt = f"ckpt={tmp_path}/pictures/checkpoints/last.ckpt"
    assert "layer decay 0.7 of what was loaded" in train(*finetune, ckpt, "trainer.max_epochs=1", **how)
    (file,) = tmp_path.glob("logs/run/2*/checkpoints/last.ckpt")
    before = torch.load(file, weights_only=True)
    assert {name for name in before["loaded"] if name.startswith("encoder.modalities.video.blocks")}
    assert not {name for name in before["loaded"] if "audio" in name}
    # The weights that it began with may be gone by now.
    (tmp_path / "pictures/checkpoints/last.ckpt").unlink()
    for epochs, again in ((2, ()), (3, (ckpt,))):
        train(*finetune, *again, f"trainer.max_epochs={epochs}", "resume=last", **how)
        after = torch.load(file, weights_only=True)
        assert (after["epoch"], after["loaded"]) == (epochs - 1, before["loaded"])
        first, now = (state["optimizer_states"][0]["param_groups"] for state in (before, after))
        assert [(g["params"], g["initial_lr"]) for g in now] == [(g["params"], g["initial_lr"]) for g in first]
    assert len({group["initial_lr"] for group in now}) == 4, "the full rate, two blocks and the embedding"
