"""What is in a data set, file by file: its manifest brought up to date, and counted by part."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from avmae.clip import ClipSpec
from avmae.data.build import build_data
from avmae.data.manifest import NAME, Record, read_manifest, update_manifest
from avmae.data.sources.shards import PackSpec, Row, pack
from avmae.data.sources.ucf101 import CLASSES_WITH_SOUND, read_ucf101
from avmae.data.splits import ClipEntry, Splits, keep_classes
from avmae.errors import InputError
from avmae.runs.launch import cores

Parts = dict[str, list[ClipEntry]]
Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""Wraps things as they are made, of so many."""


@dataclass(frozen=True)
class Inventory:
    """The files of a data set."""

    file: Path  # the manifest
    root: Path  # the folder that its paths start from
    listed: Splits
    parts: Parts  # clips by the name of their part; of UCF101, of all three folds
    records: Mapping[str, Record]  # what decoding found, by path
    decoded: int  # how many files were decoded this time

    def path(self, clip: ClipEntry) -> str:
        """A clip's in the manifest."""
        # Lists may have absolute paths where the root is relative; `relpath` makes both absolute.
        return os.path.relpath(str(clip.path), self.root)

    def counts(self) -> dict[str, dict[str, int]]:
        """Clips of each part, by what can be decoded."""
        counts = {}
        for part, clips in self.parts.items():
            records = [self.records[self.path(clip)] for clip in clips]
            audio, bad = sum(r.has_audio for r in records), sum(not r.readable for r in records)
            silent = len(clips) - audio - bad
            counts[part] = {"clips": len(clips), "with audio": audio, "silent": silent, "unreadable": bad}
        return counts

    def formats(self) -> Counter[tuple[str, ...]]:
        """How many files have the same codecs, size and rate."""
        return Counter(
            (
                record.video_codec,
                record.audio_codec or "-",
                f"{record.width}x{record.height}",
                f"{record.fps:.4g} fps" + ("" if record.constant_rate else ", varying"),
            )
            for record in self.records.values()
        )

    def unlike_the_original(self) -> dict[str, tuple[int, int]]:
        """UCF101's classes that have audio where the original has none, or the other way round.

        Returns:
            How many of a class's clips have audio, and how many there are.
        """
        clips, audible = Counter[int](), Counter[int]()
        listed = {(self.path(clip), label) for part in self.parts.values() for clip in part for label in clip.labels}
        for path, label in listed:
            clips[label] += 1
            audible[label] += self.records[path].has_audio
        return {
            name: (audible[label], clips[label])
            for label, name in enumerate(self.listed.classes)
            if (2 * audible[label] > clips[label]) != (name in CLASSES_WITH_SOUND)
        }


def take_inventory(
    data: Mapping[str, Any], output: str | Path | None, processes: int | None, progress: Progress
) -> Inventory:
    """Decode every file of a data set that its manifest does not have as it is now, and write the manifest.

    The data are settings of `build_data`. The manifest lies at `output`, or else at ``data["manifest"]``, or else in
    the data set's folder. So many processes decode, or one a core.

    Raises:
        InputError: the data set cannot be read, or its manifest cannot be written.
    """
    # What is about to be written need not be there yet.
    listed = build_data({key: value for key, value in data.items() if key != "manifest"}, ClipSpec()).listed
    root = listed.root
    if root is None:
        raise InputError("a packed copy (data=shards) has no files to decode; prepare the data set that it was made of")
    parts = folds(root) if "fold" in data else {part: clips for part, clips in listed.parts().items() if clips}
    file = Path(output or data.get("manifest") or root / NAME).expanduser()
    inventory = Inventory(file, root, listed, parts, {}, 0)
    names = {inventory.path(clip): clip.path for clips in parts.values() for clip in clips}
    paths = sorted(names)
    if outside := [names[path] for path in paths if path.startswith(os.pardir + os.sep)]:
        raise InputError(f"{outside[0]} is not under data.root={root}; choose a folder that holds all clips")
    decoded = len([*progress(update_manifest(root, paths, file, processes or cores()), len(paths))])
    return replace(inventory, records=read_manifest(file), decoded=decoded)


def folds(root: Path, classes: list[str] | None = None) -> Parts:
    """All folds of UCF101, or of some of its classes; its official lists are checked against the disk on the way."""
    parts: Parts = {}
    for fold in (1, 2, 3):
        splits = read_ucf101(root, fold, val_groups=0)
        splits = keep_classes(splits, classes or splits.classes)
        parts |= {f"fold {fold} train": splits.train, f"fold {fold} test": splits.test}
    return parts


def pack_inventory(
    inventory: Inventory, target: Path, spec: PackSpec, processes: int | None, progress: Progress
) -> tuple[int, int, int, list[str]]:
    """Write the copy of a data set that `data=shards` reads, of the listed classes alone; see `pack`.

    Returns:
        The number of packed clips, how many bytes they had and have, and what could not be packed and why.
    """
    listed, root = inventory.listed, inventory.root
    folded = any(part.startswith("fold ") for part in inventory.parts)
    # A clip may be in several lists, and have another label in each.
    rows: dict[tuple[Any, ...], Row] = {}
    # The manifest is of all classes, the copy of those alone that `only` keeps.
    for part, clips in (folds(root, listed.classes) if folded else inventory.parts).items():
        _, fold, name = part.split() if folded else ("", "0", part)
        for clip in clips:
            path = inventory.path(clip)
            audio = None if clip.audio is None else os.path.relpath(clip.audio, root)
            new = Row(path, clip.label, clip.group, {}, clip.start, clip.end, audio)
            row = rows.setdefault((path, clip.between, clip.labels, audio or ""), new)
            row.parts.setdefault(fold, []).append(name)
    chosen = [rows[key] for key in sorted(rows)]
    packed, problems = pack(chosen, listed.classes, root, target, spec, processes or cores(), progress)
    before = sum((root / name).stat().st_size for name in {row.name for row in chosen})
    after = sum(file.stat().st_size for file in target.iterdir())
    return packed, before, after, problems
