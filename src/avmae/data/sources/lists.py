"""Lists of clips as people have them: lines of `path label`, tables with a header, and CAV-MAE's JSON."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from avmae.errors import InputError

COLUMNS = {
    "path": ("path", "video", "video_path", "file", "filename"),
    "label": ("label", "class"),
    "labels": ("labels",),
    "start": ("start",),
    "end": ("end",),
    "audio": ("audio", "wav"),
}
"""Columns of a table by the names that its header may give them; others are passed over."""

PLAIN = re.compile(r"(.*[^\s,])\s*[,\s]\s*(-?\d+)")
"""A path, which may hold spaces, and a number."""


class Line(NamedTuple):
    """One clip of a list, its cells as written; `place` is its file and line, for messages."""

    place: str
    path: str
    label: str | None = None
    labels: str | None = None  # several in one cell; empty for a clip that has none of the classes
    start: str | None = None
    end: str | None = None
    audio: str | None = None


def read_lines(file: Path, base: Path) -> list[Line]:
    """Read a list, whose relative paths start from a folder.

    - With a header (see `COLUMNS`): comma, semicolon, tab or space between the cells, which may be quoted.
    - Without, lines of `path label`, where the label is a number, or `path`, or `path name`: there the path is as much
      of the line as is a file's.
    - ``{"data": [{"video_path": ..., "wav": ..., "labels": "a,b"}, ...]}`` in a file that ends in ``.json``, as CAV-MAE
      has it; where there is no ``video_path``, ``wav`` is the clip's file.

    Raises:
        InputError: it is missing, empty or malformed.
    """
    if not file.is_file():
        raise InputError(f"{file} is missing; it must be a text file of 'path label' lines")
    # Excel begins a file with a mark of its encoding.
    text = file.read_text(encoding="utf-8-sig")
    lines = [*(_json(file, text) if file.suffix.lower() == ".json" else _rows(file, text, base))]
    if not lines:
        raise InputError(f"{file} is empty; it must have a 'path label' line for each clip")
    return lines


def _json(file: Path, text: str) -> Iterator[Line]:
    try:
        items: Any = json.loads(text)["data"]
        for number, item in enumerate(items):
            video, audio = item.get("video_path"), item.get("wav")
            if not (video or audio):
                raise InputError(f"{file}: data[{number}] has neither video_path nor wav")
            labels = item.get("labels")
            labels = ";".join(labels) if isinstance(labels, list) else labels
            yield Line(f"{file}: data[{number}]", video or audio, labels=labels, audio=audio if video else None)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f'{file} is no {{"data": [{{"video_path": ..., "labels": ...}}]}} ({error})') from error


def _rows(file: Path, text: str, base: Path) -> Iterator[Line]:
    lines = text.splitlines()
    first = next((line.strip() for line in lines if line.strip()), "")
    if (found := _header(file, first)) is None:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield Line(f"{file}:{number}", *_without_header(f"{file}:{number}", line.strip(), base))
        return
    delimiter, header = found
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        rows = [(f"{file}:{reader.line_num}", [cell.strip() for cell in row]) for row in reader if any(row)]
    except csv.Error as error:
        raise InputError(f"{file}:{reader.line_num}: {error}; check its quotes") from error
    for place, row in rows[1:]:
        if len(row) > len(header):
            raise InputError(f"{place}: has {len(row)} cells, the header {len(header)}; quote what holds '{delimiter}'")
        cells = {name: cell for name, cell in zip(header, row, strict=False) if name and (cell or name == "labels")}
        if "path" not in cells:
            raise InputError(f"{place}: has no path")
        yield Line(place, **cells)


def _header(file: Path, line: str) -> tuple[str, list[str]] | None:
    """What separates the cells of a table and the names of its columns, empty for those passed over."""
    names = {name: column for column, others in COLUMNS.items() for name in others}
    for delimiter in () if PLAIN.fullmatch(line) else "\t,; ":
        header = [names.get(cell.strip(' "').casefold(), "") for cell in line.split(delimiter)]
        known = [name for name in header if name]
        if "path" in known:
            if len(set(known)) < len(known) or {"label", "labels"} <= {*known}:
                raise InputError(f"{file}: two columns of its header '{line}' are for the same")
            return delimiter, header
    return None


def _without_header(place: str, line: str, base: Path) -> tuple[str, str | None]:
    """The path and the label of a line."""
    if line.startswith('"'):
        delimiter = next((sign for sign in "\t," if sign in line[line.rindex('"') :] or f'"{sign}' in line), " ")
        path, *rest = (cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True)))
        label = delimiter.join(rest).strip()
    elif match := PLAIN.fullmatch(line):
        return match[1], match[2]
    else:
        ends = [len(line), *(match.start() for match in reversed([*re.finditer(r"\s*[,\s]\s*", line)]))]
        end = next((end for end in ends if (base / line[:end]).is_file()), None)
        if end is None:
            raise InputError(
                f"{place}: expected 'path label', but '{line}' starts with no file's path; relative paths start from "
                f"data.root={base}"
            )
        path, label = line[:end], line[end:].strip(", \t").strip('"')
    if "," in label and '"' not in line:
        raise InputError(f"{place}: '{label}' is more than a label; name the columns in a first line")
    return path, label or None


def read_classes(file: Path) -> tuple[list[str], dict[str, int]]:
    """The names of classes, and their labels by name, and by ``mid`` where they have one.

    The file has a name a line, or is a table like AudioSet's ``class_labels_indices.csv`` with the columns
    ``display_name`` or ``name``, and, if it has them, ``index`` and ``mid``.

    Raises:
        InputError: it is missing or malformed, or has a name twice.
    """
    if not file.is_file():
        raise InputError(f"data.classes={file} is missing; it must be a text file with the name of a class a line")
    text = file.read_text(encoding="utf-8-sig")
    table = csv.DictReader(text.splitlines())
    if column := next((name for name in ("display_name", "name") if name in (table.fieldnames or ())), None):
        rows = [*table]
        try:
            order = [int(row.get("index") or number) for number, row in enumerate(rows)]
        except ValueError as error:
            raise InputError(f"{file}: {error}; index must count the classes from 0") from error
        names, mids = [row[column] for row in rows], [row.get("mid") for row in rows]
    else:
        names = [line.strip().strip('"') for line in text.splitlines() if line.strip()]
        order, mids = [*range(len(names))], []
    if sorted(order) != [*range(len(names))] or len(set(names)) < len(names):
        raise InputError(f"{file}: classes must have names of their own and be counted from 0")
    known = dict(zip(names, order, strict=True)) | {mid: n for mid, n in zip(mids, order, strict=False) if mid}
    return sorted(names, key=known.__getitem__), known
