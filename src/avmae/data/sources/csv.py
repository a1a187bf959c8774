"""Lists of `path label`, one clip a line, as VideoMAE and its successors take them."""

import os
import re
from collections.abc import Mapping
from itertools import chain, combinations
from pathlib import Path

from avmae.data.paths import identity, within
from avmae.data.splits import ClipEntry, Splits, some
from avmae.errors import InputError


def read_csv(
    train: str | Path | None = None,
    val: str | Path | None = None,
    test: str | Path | None = None,
    root: str | Path | None = None,
    classes: int | list[str] | None = None,
) -> Splits:
    """Read lists of `path label`, separated by a space, comma or tab; the path may hold spaces itself.

    A path is absolute, or relative and then within `root`, or else within its list's folder: neither ``..`` nor a
    symbolic link may lead out of it. Paths of a manifest start from `root`, or else from the deepest folder that holds
    all clips. `classes` is their number or names; None takes the highest label of all lists.

    Raises:
        InputError: no list at all, a list or listed file is missing, a line is malformed, a label is out of range, a
            relative path leads out of the folder, or a training clip is in another list, too.
    """
    lists = {"train": train, "val": val, "test": test}
    if not any(lists.values()):
        raise InputError("data=csv needs a list of 'path label' lines: set data.train, data.val or data.test")
    count = len(classes) if isinstance(classes, list) else classes
    parts = {part: _read_list(Path(file).expanduser(), root, count) if file else [] for part, file in lists.items()}
    entries = [*chain(*parts.values())]
    if count is None:
        count = 1 + max(entry.label for entry in entries)
    names = classes if isinstance(classes, list) else [str(label) for label in range(count)]
    notes = (*_repetitions(parts, lists), *_gaps(parts["train"] or entries, bool(parts["train"]), count))
    if not root:
        root = os.path.commonpath({os.path.abspath(Path(str(entry.path)).parent) for entry in entries})
    return Splits(**parts, classes=names, notes=notes, root=Path(root).expanduser())


def _repetitions(parts: dict[str, list[ClipEntry]], lists: Mapping[str, str | Path | None]) -> list[str]:
    """What is to be said of clips that are listed more than once.

    Raises:
        InputError: some are for training and for something else.
    """
    labels: dict[str, dict[Path, set[int]]] = {}
    notes = []
    for part, entries in parts.items():
        found = labels[part] = {}
        for entry in entries:
            found.setdefault(identity(Path(str(entry.path))), set()).add(entry.label)
        if more := len(entries) - len(found):
            differing = [file for file, given in found.items() if len(given) > 1]
            contradiction = f", with different labels {some(differing)}" if differing else ""
            notes.append(
                f"data.{part}={lists[part]} repeats clips on {more} of its {len(entries)} lines{contradiction}"
            )
    for one, other in combinations(parts, 2):
        if both := sorted(labels[one].keys() & labels[other].keys()):
            said = f"{len(both)} of the clips of data.{one}={lists[one]} are in data.{other}={lists[other]}, too: "
            if one == "train":
                raise InputError(f"{said}{some(both)}; take them off one of the lists")
            notes.append(f"{said}the best checkpoint is chosen by clips that test it")
    return notes


def _gaps(entries: list[ClipEntry], for_training: bool, count: int) -> list[str]:
    """What is to be said of labels that no clip has."""
    present = {entry.label for entry in entries}
    absent = [label for label in range(count) if label not in present]
    if not absent:
        return []
    if absent == list(range(min(present))):
        return [f"labels start at {min(present)} instead of 0: of {count} classes, {some(absent)} has no clip"]
    kind = "training clip" if for_training else "clip"
    return [f"no {kind} has the label{'s' if len(absent) > 1 else ''} {some(absent)} of {count} classes"]


def _read_list(file: Path, root: str | Path | None, classes: int | None) -> list[ClipEntry]:
    if not file.is_file():
        raise InputError(f"{file} is missing; it must be a text file of 'path label' lines")
    base = Path(root).expanduser() if root else file.parent
    entries = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        match = re.fullmatch(r"(.*[^\s,])\s*[,\s]\s*(-?\d+)", line.strip())
        if not match:
            raise InputError(f"{file}:{number}: expected 'path label' with a whole number as label, found '{line}'")
        name, label = match[1], int(match[2])
        if label < 0 or (classes is not None and label >= classes):
            limit = f"0 to {classes - 1}" if classes is not None else "0 or more"
            raise InputError(f"{file}:{number}: label {label} is out of range ({limit}); labels start at 0")
        try:
            path = Path(name) if Path(name).is_absolute() else within(base, name)
        except InputError as error:
            raise InputError(f"{file}:{number}: {error}") from error
        if not path.is_file():
            raise InputError(f"{file}:{number}: {path} does not exist; relative paths start from data.root={base}")
        entries.append(ClipEntry(path, label))
    if not entries:
        raise InputError(f"{file} is empty; it must have a 'path label' line for each clip")
    return entries
