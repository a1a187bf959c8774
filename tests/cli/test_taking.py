"""Fine-tuning takes the model, the size and the clip of its checkpoint, unless the command line says otherwise."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run
from files import official, save
from systems import CLIP, SIZE, autoencoder

from avmae.cli.config import composed
from avmae.errors import InputError

CLASSIFY = ("task=classify", "optim=finetune")


def settings(tmp_path: Path, *overrides: str) -> dict[str, Any]:
    return composed("train", [*overrides, f"logs={tmp_path}/logs"])


@pytest.fixture
def ckpt(tmp_path: Path) -> Path:
    return save(tmp_path / "last.ckpt", autoencoder("videomae"), "videomae")


def test_they_are_the_checkpoints(ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = settings(tmp_path, "experiment=finetune", f"ckpt={ckpt}", "data=synthetic")
    assert (config["size"]["name"], config["size"]["dim"], config["size"]["depth"]) == ("mini", SIZE.dim, SIZE.depth)
    assert (config["model"]["name"], config["model"]["modalities"]) == ("videomae", ["video"])
    assert (config["clip"]["frames"], config["clip"]["size"]) == (CLIP.frames, CLIP.size)
    # The recipe's own, and what it makes of the model.
    assert (config["model"]["drop_path"], config["task"]["drop_audio"]) == (0.2, 0.0)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"as in {ckpt}: model=videomae ")
    assert "clip.size=32" in line


def test_the_command_line_counts_more(ckpt: Path, tmp_path: Path) -> None:
    typed = ("model=avmae", "size.depth=1", "clip.size=64")
    config = settings(tmp_path, *CLASSIFY, f"ckpt={ckpt}", *typed)
    assert (config["model"]["name"], config["model"]["video_patch"]) == ("avmae", [2, 16, 16])
    assert (config["size"]["depth"], config["size"]["dim"]) == (1, SIZE.dim)
    assert (config["clip"]["size"], config["clip"]["frames"]) == (64, CLIP.frames)


def test_pretraining_and_weights_of_others_change_no_setting(
    ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert settings(tmp_path, f"ckpt={ckpt}")["size"]["name"] == "base"
    torch.save(official(autoencoder("videomae")), tmp_path / "official.pth")
    assert settings(tmp_path, *CLASSIFY, f"ckpt={tmp_path}/official.pth")["model"]["name"] == "avmae"
    assert capsys.readouterr().out == ""


def test_a_file_that_is_gone_is_needed_only_to_begin(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.ckpt does not exist"):
        settings(tmp_path, *CLASSIFY, "ckpt=gone.ckpt")
    assert not (tmp_path / "logs").exists()
    with pytest.raises(InputError, match="resume=last: no checkpoint"):
        settings(tmp_path, *CLASSIFY, "ckpt=gone.ckpt", "resume=last")


def test_a_training_needs_nothing_but_the_checkpoint(pretrained: Path, miniature: Path, tmp_path: Path) -> None:
    data = ("data=ucf101", f"data.root={miniature}", "data.batch_size=4", "data.workers=0", "data.segments=1")
    how = ("trainer.max_steps=1", "trainer.accelerator=cpu", "data.crops=1", "hydra.run.dir=run")
    printed = run("train", *CLASSIFY, *data, *how, f"ckpt={pretrained}/checkpoints/last.ckpt", cwd=tmp_path)
    assert "100% of the encoder" in printed
    (line,) = (line for line in printed.splitlines() if line.startswith("as in "))
    assert {"size=tiny", "size.dim=48"} <= set(line.split())
    assert "test/top1" in json.loads((tmp_path / "run/summary.json").read_text())
