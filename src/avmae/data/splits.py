"""Which clips a data set has, and which are for training, validation and test."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from avmae.data.decode.container import Source
from avmae.data.decode.window import Span
from avmae.errors import InputError


@dataclass(frozen=True)
class ClipEntry:
    """One clip of a data set: a file or a part of one, its class or classes from 0, and what it shares its source with.

    Clips of one group must not be split between training and validation.
    """

    path: Source
    label: int | tuple[int, ...]  # a tuple, of any length, in a data set whose clips have many labels
    group: str = ""
    start: float | None = None  # in seconds from the file's first frame; None for that
    end: float | None = None  # None for the file's end
    audio: Path | None = None  # the file of its audio, which starts with the first frame; None for the same file

    @property
    def labels(self) -> tuple[int, ...]:
        """Its classes, be it one or many."""
        return self.label if isinstance(self.label, tuple) else (self.label,)

    def many_hot(self, classes: int) -> list[int]:
        """1 for each of its classes, 0 for the others."""
        return [int(label in self.labels) for label in range(classes)]

    @property
    def between(self) -> Span:
        """From when to when it lasts, as `read_window` takes it."""
        return self.start or 0.0, math.inf if self.end is None else self.end

    def __str__(self) -> str:
        """Its file, and of a part of one from when to when, as a media fragment URI has it (W3C): `a.mp4#t=1.5,4`."""
        if (self.start, self.end) == (None, None):
            return str(self.path)
        return f"{self.path}#t={self.start or 0:.10g}{'' if self.end is None else f',{self.end:.10g}'}"


@dataclass(frozen=True)
class Splits:
    """What a source returns: the clips of each part, names of classes by label, and what the user should know of them.

    A manifest's paths start from the root, which is None where the clips are no files.
    """

    train: list[ClipEntry]
    val: list[ClipEntry]
    test: list[ClipEntry]
    classes: list[str]
    notes: tuple[str, ...] = ()
    root: Path | None = None

    def parts(self) -> dict[str, list[ClipEntry]]:
        """By name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def many_labels(self) -> bool:
        """Whether clips have any number of classes instead of one."""
        return any(isinstance(entry.label, tuple) for entry in chain(*self.parts().values()))

    def targets(self, part: str) -> Tensor:
        """Labels (N,) int64 of the clips of a part, or, where clips have many, 1 for each of theirs: (N, classes)."""
        entries = self.parts()[part]
        if not self.many_labels:
            return torch.tensor([entry.label for entry in entries], dtype=torch.int64)
        return torch.tensor([entry.many_hot(len(self.classes)) for entry in entries], dtype=torch.int64)


def some(names: Sequence[object]) -> str:
    """The first few of many names, and how many there are."""
    return ", ".join(map(str, names[:5])) + (f", ... ({len(names)})" if len(names) > 5 else "")


def hold_out(train: list[ClipEntry], val_groups: int, fold: int) -> tuple[list[ClipEntry], list[ClipEntry]]:
    """Take the highest-numbered groups off a train list for validation; returns train and validation.

    Raises:
        InputError: no group is left for training.
    """
    groups = sorted({entry.group for entry in train})
    if not 0 <= val_groups < len(groups):
        raise InputError(f"data.val_groups={val_groups} must leave some of fold {fold}'s {len(groups)} train groups")
    held_out = set(groups[len(groups) - val_groups :])
    return [e for e in train if e.group not in held_out], [e for e in train if e.group in held_out]


def keep_classes(splits: Splits, names: Collection[str]) -> Splits:
    """Keep the clips of some classes, and of their labels these, counted anew in the data set's order.

    Raises:
        InputError: a name is no class of the data set, or there is none.
    """
    wanted = {name.casefold() for name in names}
    kept = [label for label, name in enumerate(splits.classes) if name.casefold() in wanted]
    unknown = sorted(wanted - {splits.classes[label].casefold() for label in kept})
    if unknown or not kept:
        wrong, some_classes = unknown[0] if unknown else [], ", ".join(splits.classes[:3])
        raise InputError(f"data.only={wrong} is none of the {len(splits.classes)} classes {some_classes}, ...")
    anew = {label: number for number, label in enumerate(kept)}
    train, val, test = (
        [
            replace(entry, label=left if isinstance(entry.label, tuple) else left[0])
            for entry in part
            if (left := tuple(anew[label] for label in entry.labels if label in anew))
        ]
        for part in splits.parts().values()
    )
    return replace(splits, train=train, val=val, test=test, classes=[splits.classes[label] for label in kept])


def few_labels(splits: Splits, share: float, seed: int) -> Splits:
    """Keep a share of each class's training clips, at least one, drawn by the seed; all else stays.

    A clip of many labels counts for the first of them alone, one of none for a class of its own.
    """
    rng = np.random.default_rng(seed)
    labels = np.array([min(entry.labels, default=-1) for entry in splits.train])
    kept: list[int] = []
    for label in range(-1, len(splits.classes)):
        numbers = rng.permutation(np.flatnonzero(labels == label))
        kept += numbers[: max(1, round(share * len(numbers)))].tolist()
    return replace(splits, train=[splits.train[number] for number in sorted(kept)])
