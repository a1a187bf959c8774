"""Lists of `path label`, one clip a line, as VideoMAE and its successors take them."""

import os
import re
from itertools import chain
from pathlib import Path

from avmae.data.paths import within
from avmae.data.splits import ClipEntry, Splits
from avmae.errors import InputError


def read_csv(
    train: str | Path | None = None,
    val: str | Path | None = None,
    test: str | Path | None = None,
    root: str | Path | None = None,
    classes: int | list[str] | None = None,
) -> Splits:
    """Read lists of `path label`, separated by a space, comma or tab; the path may hold spaces itself.

    A path is absolute, or relative and then within ``root``: neither ``..`` nor a symbolic link may lead out of it.

    Args:
        train: list for training.
        val: list for validation.
        test: list for test.
        root: what relative paths start from; None is each list's own folder.
        classes: their number or names; None takes the highest label of all lists.

    Raises:
        InputError: no list at all, a list or listed file is missing, a line is malformed, a label is out of range, or
            a relative path leads out of the folder.
    """
    lists = {"train": train, "val": val, "test": test}
    if not any(lists.values()):
        raise InputError("data=csv needs a list of 'path label' lines: set data.train, data.val or data.test")
    count = len(classes) if isinstance(classes, list) else classes
    parts = {part: _read_list(Path(file), root, count) if file else [] for part, file in lists.items()}
    if count is None:
        count = 1 + max(entry.label for entries in parts.values() for entry in entries)
    names = classes if isinstance(classes, list) else [str(label) for label in range(count)]
    return Splits(parts["train"], parts["val"], parts["test"], names)


def common_folder(splits: Splits) -> Path:
    """The deepest folder that holds all clips."""
    entries = chain(splits.train, splits.val, splits.test)
    return Path(os.path.commonpath({os.path.abspath(Path(str(entry.path)).parent) for entry in entries}))


def _read_list(file: Path, root: str | Path | None, classes: int | None) -> list[ClipEntry]:
    file = file.expanduser()
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
            raise InputError(
                f"{file}:{number}: {path} does not exist; relative paths start from data.root, here {base}"
            )
        entries.append(ClipEntry(path, label))
    if not entries:
        raise InputError(f"{file} is empty; it must have a 'path label' line for each clip")
    return entries
