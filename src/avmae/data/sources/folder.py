"""A folder of one's own: a class per subfolder."""

from pathlib import Path

from avmae.data.splits import ClipEntry, Splits
from avmae.errors import InputError

SUFFIXES = frozenset(".3gp .avi .flv .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split())
PARTS = ("train", "val", "test")


def read_folder(root: str | Path, val_share: float = 0.1) -> Splits:
    """Read `ROOT/PART/CLASS/*`, PART being train, val and test, or `ROOT/CLASS/*`.

    Without parts, each class's last files in the order of their names validate: neighbours in that order are often cut
    from one recording, and only a whole stretch keeps most of them together. There is no test part then.

    Args:
        root: the folder.
        val_share: of each class's files without parts, rounded down.

    Raises:
        InputError: there is no such folder, it holds no class with a video, or a part has a class that train lacks.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; data.root must hold a folder per class, or train/, val/ and test/")
    if not 0 <= val_share < 1:
        raise InputError(f"data.val_share must be at least 0 and below 1, not {val_share}")
    apart = (root / "train").is_dir()
    clips = {part: _by_class(root / part) for part in PARTS} if apart else {"train": _by_class(root)}
    classes = sorted(clips["train"])
    if not classes:
        raise InputError(
            f"{root / 'train' if apart else root} holds no folder with videos ({', '.join(sorted(SUFFIXES))})"
        )
    if len(classes) < 2:
        raise InputError(
            f"{root} has the one class {classes[0]}; data.root must hold a folder per class, or train/ with these"
        )
    for part, found in clips.items():
        unknown = sorted(set(found) - set(classes))
        if unknown:
            raise InputError(f"{root / part}: class {unknown[0]} is not in {root / 'train'}; add it there or remove it")
    entries: dict[str, list[ClipEntry]] = {part: [] for part in PARTS}
    for part, found in clips.items():
        for name, files in found.items():
            kept = len(files) if apart else len(files) - int(val_share * len(files))
            entries[part] += [ClipEntry(file, classes.index(name)) for file in files[:kept]]
            entries["val"] += [ClipEntry(file, classes.index(name)) for file in files[kept:]]
    return Splits(entries["train"], entries["val"], entries["test"], classes)


def _by_class(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        return {}
    found = {
        path.name: sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        for path in sorted(folder.iterdir())
        if path.is_dir()
    }
    return {name: files for name, files in found.items() if files}
