"""Whole runs on lists: many clips of one file, pretrained and embedded."""

import json
from pathlib import Path

import pytest
from commands import TINY, error, run
from media_files import H264, write_media
from safetensors import safe_open

from avmae.features import features
from avmae.train import train

PARTS = [(0, 2), (2, 4), (4, 6), (6, 7.96), (1, 3), (3, 5)]


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A list of six clips of one file, without labels."""
    write_media(tmp_path / "a.mp4", frames=200, **H264)
    (tmp_path / "list.csv").write_text("path,start,end\n" + "".join(f"a.mp4,{s},{e}\n" for s, e in PARTS))
    return tmp_path / "list.csv"


def test_parts_of_one_file_are_pretrained_on_and_told_apart(parts: Path, tmp_path: Path) -> None:
    data = ("data=csv", f"data.train={parts}")
    run_dir, metrics = train(
        *data, *TINY, "trainer.max_epochs=1", "callbacks.reconstructions.clips=2", f"run_dir={tmp_path}/run"
    )
    assert metrics["train/loss"] > 0
    shown = sorted(path.name for path in (run_dir / "reconstructions/epoch_0000").iterdir())
    assert shown == ["a_0,2", "a_3,5"]
    found = features(run_dir / "checkpoints/last.ckpt", {"segments": 1, "crops": 1, "workers": 0})
    assert found.clips["train"] == [f"{tmp_path}/a.mp4#t={start},{end}" for start, end in PARTS]
    assert len({tuple(row.tolist()) for row in found.tensors["train/features"]}) == len(PARTS)
    found.save(tmp_path / "f.safetensors", "x")
    with safe_open(tmp_path / "f.safetensors", "np") as stored:
        assert json.loads(stored.metadata()["clips"])["train"] == found.clips["train"]
    said = error(run("train", *data, *TINY, "task=classify", cwd=tmp_path, ok=False))
    assert "the data set has the one class unlabelled" in said


def test_parts_share_their_files_packed_copy(parts: Path, tmp_path: Path) -> None:
    from avmae.data.sources.shards import read_packed

    printed = run(
        "prepare", "data=csv", f"data.train={parts}", f"pack={tmp_path}/p", f"output={tmp_path}/m", cwd=tmp_path
    )
    assert "6 clips" in printed
    clips = read_packed(str(tmp_path / "p")).train
    assert sorted(clip.between for clip in clips) == sorted(PARTS)
    assert {clip.path.index for clip in clips} == {0}
