"""A folder of one's own: a class per subfolder, or videos alone."""

from collections.abc import Iterator
from pathlib import Path

from avmae.data.splits import ClipEntry, Splits, some
from avmae.errors import InputError

SUFFIXES = frozenset(".3gp .avi .flv .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split())
PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
"""Names that folders of parts have, in any case."""
PART_OF = {name: part for part, names in PARTS.items() for name in names}

UNLABELLED = "unlabelled"
"""The one class of videos that lie in no folder of a class."""

ENOUGH = 3
"""Clips of a class from which at least one validates."""


def read_folder(root: str | Path, val_share: float = 0.1) -> Splits:
    """Read `ROOT/PART/CLASS/*`, PART being train, val or test or another of `PARTS`, or `ROOT/CLASS/*`.

    Videos that lie directly in ROOT, or in all parts, are of one class, `unlabelled`: enough for pretraining.

    Without parts, each class's last files in the order of their names validate: neighbours in that order are often cut
    from one recording, and only a whole stretch keeps most of them together. There is no test part then.

    Args:
        root: the folder.
        val_share: of each class's files without parts, rounded down, but at least one of 3 or more.

    Raises:
        InputError: there is no such folder, it holds no video, a part is there twice or has a class that train lacks,
            or it is not clear which folders are parts.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; data.root must hold a folder per class, or train/, val/ and test/")
    if not 0 <= val_share < 1:
        raise InputError(f"data.val_share must be at least 0 and below 1, not {val_share}")
    folders = _parts(root)
    clips = {part: _by_class(folder) for part, folder in folders.items()} or {"train": _by_class(root)}
    classes = sorted(clips["train"])
    if not classes:
        raise InputError(f"{folders.get('train', root)} holds no videos ({', '.join(sorted(SUFFIXES))})")
    for part, found in clips.items():
        if unknown := sorted(set(found) - set(classes)):
            raise InputError(f"{folders[part]}: class {unknown[0]} is not in {folders['train']}; add or remove it")
    entries: dict[str, list[ClipEntry]] = {part: [] for part in PARTS}
    few = []
    for part, found in clips.items():
        for name, files in found.items():
            held = 0 if folders else int(val_share * len(files))
            if not folders and val_share and not held:
                held = int(len(files) >= ENOUGH)
                few += [name] * (not held)
            kept, label = len(files) - held, classes.index(name)
            entries[part] += [ClipEntry(file, label) for file in files[:kept]]
            entries["val"] += [ClipEntry(file, label) for file in files[kept:]]
    note = f"classes of fewer than {ENOUGH} clips have none for validation: {some(few)}"
    return Splits(**entries, classes=classes, notes=(note,) if few else (), root=root)


def _parts(root: Path) -> dict[str, Path]:
    """The folders of parts; none where all folders are classes.

    `train` may be a class as well. It is a part where it holds folders with videos, or where all others are parts.
    """
    folders = [path for path in sorted(root.iterdir()) if _holds_videos(path)]
    parts: dict[str, Path] = {}
    for folder in folders:
        part = PART_OF.get(folder.name.casefold())
        if part in parts:
            raise InputError(f"{root} has both {parts[part].name}/ and {folder.name}/; put them into one")
        if part:
            parts[part] = folder
    if "train" not in parts:
        return {}
    others = [folder.name for folder in folders if folder not in parts.values()]
    if others and any(map(_holds_videos, parts["train"].iterdir())):
        raise InputError(
            f"{root}: {parts['train'].name}/ holds folders of classes, but {others[0]}/ is no part; parts are called "
            f"{', '.join(PART_OF)}; rename it or move it away"
        )
    return {} if others else parts


def _by_class(folder: Path) -> dict[str, list[Path]]:
    """The videos below each subfolder, or, where these hold none, in the folder itself."""
    found = {path.name: sorted(_videos(path)) for path in sorted(folder.iterdir()) if path.is_dir()}
    found = {name: files for name, files in found.items() if files} or {UNLABELLED: sorted(_videos(folder))}
    return {name: files for name, files in found.items() if files}


def _videos(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _holds_videos(folder: Path) -> bool:
    return folder.is_dir() and any(_videos(folder))
