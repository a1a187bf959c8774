"""Which clips a data set has, and which are for training, validation and test."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ClipEntry:
    """One file of a data set.

    Args:
        path: of the file.
        label: class number from 0.
        group: clips of one group share a source and must not be split between training and validation.
    """

    path: Path
    label: int
    group: str = ""


@dataclass(frozen=True)
class Splits:
    """The clips of each part, and the names of the classes by label."""

    train: list[ClipEntry]
    val: list[ClipEntry]
    test: list[ClipEntry]
    classes: list[str]
