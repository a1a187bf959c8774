"""Batches of the miniature UCF101."""

from pathlib import Path

from avmae.clip import ClipSpec
from avmae.data.build import build_data
from avmae.data.datamodule import ClipDataModule


def miniature_data(root: Path, clip: ClipSpec, seed: int = 0, **settings) -> ClipDataModule:
    """Clips of fold 1, the centre of each one's middle window, unless settings of `data` say otherwise."""
    return build_data({"source": "ucf101", "root": str(root), "segments": 1, "crops": 1} | settings, clip, seed=seed)


def folder_data(root: Path, **settings) -> ClipDataModule:
    return build_data({"source": "folder", "root": str(root), "val_share": 0} | settings, ClipSpec())


def csv_data(train: Path | str, **settings) -> ClipDataModule:
    return build_data({"source": "csv", "train": str(train)} | settings, ClipSpec())
