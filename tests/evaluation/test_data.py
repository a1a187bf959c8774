"""The data that a checkpoint is tested on."""

from pathlib import Path

import pytest

from avmae.data.datamodule import Loading
from avmae.errors import InputError
from avmae.evaluation.data import evaluation_data


def test_a_kind_of_data_named_as_a_whole_keeps_what_the_checkpoint_says_of_folds_and_views(miniature: Path) -> None:
    """Its other settings are its own, and what somebody typed wins over both, null included."""
    own = {"source": "ucf101", "root": "gone", "fold": 2, "segments": 2, "only": ["BounceBell", "BounceDrum"]}
    chosen = {"source": "ucf101", "root": str(miniature), "fold": 1, "val_groups": 2, "crops": 3, "only": None}
    settings = {"data": own, "clip": {}, "seed": 0}
    data = evaluation_data(settings, chosen, ["video"], typed={"root"})
    assert data.loading == Loading(segments=2, only=own["only"])
    assert {entry.group for entry in data.splits.test} == {"g08", "g09", "g10"}
    typed = evaluation_data(settings, chosen | {"segments": 1}, ["video"], typed={"root", "only", "fold", "segments"})
    assert typed.loading == Loading(segments=1)
    assert {entry.group for entry in typed.splits.test} == {f"g0{number}" for number in range(1, 8)}


def test_lists_for_the_test_alone_have_the_checkpoints_classes(miniature: Path, tmp_path: Path) -> None:
    clip = next((miniature / "UCF-101").glob("*/*.avi"))
    (tmp_path / "test.csv").write_text(f"{clip} 1\n")
    own = {"source": "csv", "train": "gone.csv", "val": "gone.csv", "test": str(tmp_path / "test.csv")}
    settings = {"data": own, "clip": {}, "seed": 0, "class_names": ["a", "b", "c"]}
    assert evaluation_data(settings, {}, ["video"], test_only=True).classes == ["a", "b", "c"]
    with pytest.raises(InputError, match=r"data\.train=gone\.csv is not there"):
        evaluation_data(settings, {}, ["video"])
