"""Clips from lists: VideoMAE's lines of `path label`, tables with a header, and CAV-MAE's JSON."""

import os
import re
from collections.abc import Mapping, Sequence
from itertools import chain, combinations
from pathlib import Path

from avmae.data.paths import identity, within
from avmae.data.sources.folder import UNLABELLED
from avmae.data.sources.lists import Line, read_classes, read_lines
from avmae.data.splits import ClipEntry, Splits, some
from avmae.errors import InputError


def read_csv(
    train: str | Path | None = None,
    val: str | Path | None = None,
    test: str | Path | None = None,
    root: str | Path | None = None,
    classes: int | list[str] | str | None = None,
) -> Splits:
    """Read lists of clips in any format of `read_lines`.

    A path is absolute, or relative and then within `root`, or else within its list's folder: neither ``..`` nor a
    symbolic link may lead out of it. Paths of a manifest start from `root`, or else from the deepest folder that holds
    all clips. Labels of all lists are numbers from 0, or all are names; without any, all clips are `unlabelled`, which
    is enough for pretraining. Where a list has a column `labels`, and a clip not exactly one, the labels of every clip
    are a tuple.

    Args:
        train: a list; the others are optional, and so is each.
        val: another.
        test: another.
        root: where relative paths start.
        classes: their number, their names, or a file of them (`read_classes`); None takes the highest label of all
            lists, or all names in alphabetical order.

    Raises:
        InputError: no list at all, a list or listed file is missing, a line is malformed, a label is out of range or
            unknown, a relative path leads out of the folder, or a training clip is in another list, too.
    """
    lists = {"train": train, "val": val, "test": test}
    if not any(lists.values()):
        raise InputError("data=csv needs a list of 'path label' lines: set data.train, data.val or data.test")
    files = {part: Path(file).expanduser() for part, file in lists.items() if file}
    bases = {part: Path(root).expanduser() if root else file.parent for part, file in files.items()}
    lines = {part: read_lines(file, bases[part]) for part, file in files.items()}
    numbers, names = _labels([*chain(*lines.values())], classes)
    parts: dict[str, list[ClipEntry]] = {part: [] for part in lists}
    for part, found in lines.items():
        parts[part] = [_entry(line, numbers[line.place], bases[part]) for line in found]
    entries = [*chain(*parts.values())]
    notes = (*_repetitions(parts, lists), *_gaps(parts["train"] or entries, bool(parts["train"]), names))
    if not root:
        root = os.path.commonpath({os.path.abspath(Path(str(entry.path)).parent) for entry in entries})
    return Splits(**parts, classes=names, notes=notes, root=Path(root).expanduser())


Label = int | tuple[int, ...]


def _labels(lines: Sequence[Line], classes: int | list[str] | str | None) -> tuple[dict[str, Label], list[str]]:
    """Labels by the lines' places, and the names of the classes."""
    given = {line.place: _written(line) for line in lines}
    if not any(given.values()):
        return dict.fromkeys(given, 0), [UNLABELLED]
    if unlabelled := [line.place for line in lines if line.label is None and line.labels is None]:
        raise InputError(f"{unlabelled[0]}: has no label, and other lines have; 'path label' is expected")
    names = list(map(str, classes)) if isinstance(classes, list) else []
    known = {name: label for label, name in enumerate(names)}
    if isinstance(classes, str):
        names, known = read_classes(Path(classes).expanduser())
    count = classes if isinstance(classes, int) else len(names) or None
    words = {place: [word for word in found if not re.fullmatch(r"-?\d+", word)] for place, found in given.items()}
    if not any(words.values()):
        numbers = {place: [int(word) for word in found] for place, found in given.items()}
        for place, labels in numbers.items():
            if wrong := [label for label in labels if label < 0 or (count is not None and label >= count)]:
                limit = f"0 to {count - 1}" if count is not None else "0 or more"
                raise InputError(f"{place}: label {wrong[0]} is out of range ({limit}); labels start at 0")
        names = names or [str(n) for n in range(count or 1 + max(chain(*numbers.values())))]
    else:
        first = next(place for place, found in given.items() if found)
        for place, found in given.items():
            if not known and found and bool(words[place]) != bool(words[first]):
                raise InputError(f"{place}: the label '{found[0]}' is not of the kind of {first}'s")
            if known and (unknown := [word for word in found if word not in known]):
                raise InputError(f"{place}: '{unknown[0]}' is none of the {len(names)} classes of data.classes")
        names = names or sorted({*chain(*given.values())})
        known = known or {name: label for label, name in enumerate(names)}
        if count not in (None, len(names)):
            raise InputError(f"data.classes={classes}, and the lists name {len(names)} classes: {some(names)}")
        numbers = {place: [known[word] for word in found] for place, found in given.items()}
    if any(len(set(labels)) != 1 for labels in numbers.values()):
        return {place: tuple(sorted(set(labels))) for place, labels in numbers.items()}, names
    return {place: labels[0] for place, labels in numbers.items()}, names


def _written(line: Line) -> list[str]:
    """The labels of a line as they are written: several are separated by semicolons or bars, or else by commas."""
    if line.labels is None:
        return [] if line.label is None else [line.label]
    found = re.split(r"[;|]" if re.search(r"[;|]", line.labels) else ",", line.labels)
    return [word.strip() for word in found if word.strip()]


def _entry(line: Line, label: Label, base: Path) -> ClipEntry:
    times: list[float | None] = []
    for name, text in (("start", line.start), ("end", line.end)):
        try:
            times.append(None if text is None else float(text))
        except ValueError:
            raise InputError(f"{line.place}: {name} '{text}' is no number of seconds") from None
    audio = None if line.audio is None else _file(line, line.audio, base)
    entry = ClipEntry(_file(line, line.path, base), label, start=times[0], end=times[1], audio=audio)
    begin, end = entry.between
    if not 0 <= begin < end:
        raise InputError(f"{line.place}: from {begin:g} to {end:g} s is no part of a file; end must be after start")
    return entry


def _file(line: Line, name: str, base: Path) -> Path:
    try:
        path = Path(name) if Path(name).is_absolute() else within(base, name)
    except InputError as error:
        raise InputError(f"{line.place}: {error}") from error
    if path.is_dir():
        raise InputError(f"{line.place}: {path} is a folder; name the video's file, for frames in folders are not read")
    if not path.is_file():
        raise InputError(f"{line.place}: {path} does not exist; relative paths start from data.root={base}")
    return path


def _repetitions(parts: dict[str, list[ClipEntry]], lists: Mapping[str, str | Path | None]) -> list[str]:
    """What is to be said of clips that are listed more than once, or are of the same file.

    Raises:
        InputError: some are for training, and share some of their time with others.
    """
    files: dict[str, dict[Path, list[ClipEntry]]] = {}
    notes = []
    for part, entries in parts.items():
        labels: dict[tuple[Path, tuple[float, float]], set[Label]] = {}
        found = files[part] = {}
        for entry in entries:
            file = identity(Path(str(entry.path)))
            labels.setdefault((file, entry.between), set()).add(entry.label)
            found.setdefault(file, []).append(entry)
        if more := len(entries) - len(labels):
            differing = [file for (file, _), given in labels.items() if len(given) > 1]
            contradiction = f", with different labels {some(differing)}" if differing else ""
            notes.append(
                f"data.{part}={lists[part]} repeats clips on {more} of its {len(entries)} lines{contradiction}"
            )
    for one, other in combinations(parts, 2):
        shared = sorted(files[one].keys() & files[other].keys())
        clips = [clip for file in shared for clip in files[one][file] if _overlaps(clip, files[other][file])]
        if both := list(dict.fromkeys(map(str, clips))):
            said = f"{len(both)} of the clips of data.{one}={lists[one]} are in data.{other}={lists[other]}, too: "
            if one == "train":
                raise InputError(f"{said}{some(both)}; take them off one of the lists")
            notes.append(f"{said}the best checkpoint is chosen by clips that test it")
        elif shared:
            notes.append(f"{len(shared)} files have clips in data.{one} and in data.{other}, which may show one scene")
    return notes


def _overlaps(clip: ClipEntry, others: Sequence[ClipEntry]) -> bool:
    begin, end = clip.between
    return any(begin < other.between[1] and other.between[0] < end for other in others)


def _gaps(entries: list[ClipEntry], for_training: bool, names: list[str]) -> list[str]:
    """What is to be said of labels that no clip has."""
    present = {label for entry in entries for label in entry.labels}
    absent = [label for label in range(len(names)) if label not in present]
    if not absent:
        return []
    if present and absent == list(range(min(present))):
        return [f"labels start at {min(present)} instead of 0: of {len(names)} classes, {some(absent)} has no clip"]
    kind, several = "training clip" if for_training else "clip", "s" if len(absent) > 1 else ""
    return [f"no {kind} has the label{several} {some([names[label] for label in absent])} of {len(names)} classes"]
