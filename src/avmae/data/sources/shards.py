"""A copy of a data set that is made to be read: recoded clips in chunks of LitData, on a disk or in an object store.

Unlike WebDataset, LitData finds a clip by its number: so the samplers that read files read chunks, too, and what they
promise (every clip once an epoch, the same batches for any number of processes, resuming in mid-epoch) holds.
"""

import functools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from avmae.data.decode.encode import pack_video
from avmae.data.paths import within
from avmae.data.pool import worker_pool
from avmae.data.splits import ClipEntry, Splits, hold_out
from avmae.errors import InputError, MediaError

TABLE, INDEX = "clips.json", "index.json"
CHUNK_BYTES = 64_000_000


@dataclass(frozen=True)
class PackSpec:
    """How clips are recoded; see `avmae.data.decode.encode.pack_video`."""

    short_side: int = 240  # of the frames, in pixels; UCF101 has 240
    quality: int = 4  # of the JPEGs, FFmpeg's scale of quantisers
    sample_rate: int = 16_000  # of the audio, in Hz; higher than `clip.sample_rate` is of no use

    def __post_init__(self) -> None:
        if self.short_side < 16 or not 1 <= self.quality <= 31 or self.sample_rate < 1000:
            raise InputError("pack: short_side is at least 16, quality from 1 to 31, sample_rate at least 1000")


@dataclass(frozen=True)
class PackedClip:
    """One clip of a packed data set, where a path is expected."""

    root: str
    index: int
    name: str

    def read_bytes(self) -> bytes:
        """The clip, as the file it was packed into."""
        return _reader(self.root)[self.index]["video"]

    def __str__(self) -> str:
        return f"{self.root}:{self.name}"


@functools.cache
def _reader(root: str) -> Any:
    """The chunks of a packed data set, opened by each process when it first reads."""
    _check_index(root)
    return _litdata().StreamingDataset(root)


@dataclass(frozen=True)
class Row:
    """One clip in the table of a packed data set."""

    name: str  # its path in the data set it was packed from
    label: int | tuple[int, ...]
    group: str  # see `ClipEntry`
    parts: dict[str, list[str]]  # lists of train, val and test, by fold; the fold is 0 where there is one division
    start: float | None = None  # see `ClipEntry`
    end: float | None = None
    audio: str | None = None  # from the root, the file that its audio was taken from


def pack(
    rows: Sequence[Row],
    classes: list[str],
    root: Path,
    target: Path,
    spec: PackSpec,
    workers: int,
    progress: Callable[[Iterable[Any], int], Iterable[Any]],
) -> tuple[int, list[str]]:
    """Recode files, each once, and write them in chunks with a table of their clips beside them.

    Rows are named from the root; `progress` wraps the files as they are done, of so many.

    Returns:
        How many clips were packed, and which files could not be, and why.

    Raises:
        InputError: the target is not empty, or cannot be written.
    """
    if target.exists() and any(target.iterdir()):
        raise InputError(f"pack={target} is not empty; choose a new folder, or delete it to pack anew")
    litdata = _litdata()
    from litdata.streaming.writer import BinaryWriter

    problems: list[str] = []
    files = list(dict.fromkeys((row.name, row.audio) for row in rows))
    items: dict[tuple[str, str | None], int] = {}
    try:
        target.mkdir(parents=True, exist_ok=True)
        writer = BinaryWriter(str(target), chunk_bytes=CHUNK_BYTES)
        with worker_pool(workers) as pool:
            packed = pool.map(functools.partial(_pack_one, root, spec), files)
            for file, content in zip(files, progress(packed, len(files)), strict=True):
                if isinstance(content, bytes):
                    writer.add_item(len(items), {"video": content})
                    items[file] = len(items)
                else:
                    problems.append(content)
        if items:
            writer.done()
            writer.merge(1)
        kept = [asdict(row) | {"item": items[file]} for row in rows if (file := (row.name, row.audio)) in items]
        table = {"classes": classes, "clips": kept, "pack": asdict(spec)}
        # Written last: a folder without it is not whole.
        (target / TABLE).write_text(json.dumps(table) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"pack={target} cannot be written: {error.strerror}; choose another folder") from error
    assert len(litdata.StreamingDataset(str(target))) == len(items)
    return len(kept), problems


def _pack_one(root: Path, spec: PackSpec, file: tuple[str, str | None]) -> bytes | str:
    name, audio = file
    try:
        sound = None if audio is None else root / audio
        return pack_video(root / name, spec.short_side, spec.quality, spec.sample_rate, sound)
    except MediaError as error:
        return str(error)


def read_packed(root: str, fold: int = 1, val_groups: int = 2) -> Splits:
    """The clips of a packed data set.

    The root is the folder or address (``s3://...``) that `avmae.prepare` has packed to; `fold` and `val_groups` are of
    data sets that have folds, see `read_ucf101`.

    Raises:
        InputError: it is no packed data set of avmae's, or has no such fold.
    """
    root = os.path.expanduser(root)
    table = _read_json(root, TABLE)
    _check_index(root)
    parts: dict[str, list[ClipEntry]] = {"train": [], "val": [], "test": []}
    folded = any("0" not in row["parts"] for row in table["clips"])
    for index, row in enumerate(table["clips"]):
        listed = row["parts"].get(str(fold) if folded else "0")
        if listed is None:
            raise InputError(f"data.fold={fold}: {root} has the folds {', '.join(row['parts'])}")
        # Older copies name one part instead of a list.
        for part in [listed] if isinstance(listed, str) else listed:
            # In older copies every clip has a file of its own.
            file = PackedClip(root, row.get("item", index), row["name"])
            label = row["label"] if isinstance(row["label"], int) else tuple(row["label"])
            parts[part].append(ClipEntry(file, label, row["group"], row.get("start"), row.get("end")))
    train, val, test = parts.values()
    if folded:
        train, val = hold_out(train, val_groups, fold)
    return Splits(train, val, test, table["classes"])


def _read_json(root: str, name: str) -> dict[str, Any]:
    import fsspec

    try:
        with fsspec.open(f"{root.rstrip('/')}/{name}", "r", encoding="utf-8") as stream:
            return json.load(stream)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            f"data.root={root} is no packed data set, for {name} cannot be read there ({error}); "
            "make one by python -m avmae.prepare data=... data.root=... pack=DIR"
        ) from error


def _check_index(root: str) -> None:
    """Let LitData have only what `pack` writes: it unpickles what an index calls pickled, and opens what it names."""
    index = _read_json(root, INDEX)
    try:
        formats = index["config"]["data_format"]
        names = [chunk["filename"] for chunk in index["chunks"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"{root}/{INDEX} is damaged; pack the data set anew") from error
    if formats != ["bytes"]:
        raise InputError(f"{root}/{INDEX}: items are {formats}, not ['bytes']; avmae did not pack it, nor will read it")
    for name in names:
        if "://" not in root:
            within(Path(root).expanduser(), name)
        elif PurePosixPath(name).name != name:
            raise InputError(f"{root}/{INDEX} names the chunk {name}, which is not in the folder; pack it anew")


def _litdata() -> Any:
    try:
        import litdata
    except ImportError as error:
        raise InputError("packed data sets need LitData: pip install 'avmae[shards]'") from error
    return litdata
