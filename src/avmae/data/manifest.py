"""What is really in each file of a data set, found by decoding it, as one table beside the data."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from pathlib import Path, PurePath
from typing import Any

import av
import numpy as np

from avmae.data.decode.window import decode_all, probe
from avmae.data.pool import worker_pool
from avmae.data.splits import Splits
from avmae.errors import InputError, MediaError

NAME = "manifest.parquet"
ROOT = b"avmae.root"
"""Key of the folder that the paths start from, in the table's metadata."""

SILENCE = -120.0
"""Level of digital silence, in dB below full scale."""


@dataclass(frozen=True)
class Record:
    """One file, as found by decoding all of it."""

    path: str  # relative to the data set's folder
    size: int  # in bytes; with `modified` it says whether the file is still the one that was read
    modified: int  # time of the last change, in nanoseconds
    frames: int = 0  # how many could be decoded
    seconds: float = 0.0  # when the last of them ends
    fps: float = 0.0  # on average
    constant_rate: bool = False  # whether all frames last equally long
    width: int = 0  # as displayed, in pixels
    height: int = 0
    video_codec: str = ""  # empty where nothing could be decoded
    audio_codec: str = ""  # empty without an audio track
    has_audio: bool = False  # whether any could be decoded
    audio_seconds: float = 0.0
    audio_level: float = SILENCE  # root mean square, in dB below full scale
    problem: str = ""  # what is wrong with the file

    @property
    def readable(self) -> bool:
        """Whether training can use it."""
        return self.frames > 0


def inspect(root: Path, path: str) -> Record:
    """Decode a whole file. What is wrong with it is in the record; nothing is raised."""
    file = root / path
    try:
        stat = file.stat()
    except OSError as error:
        return Record(path, size=0, modified=0, problem=error.strerror or str(error))
    known: dict[str, Any] = {"path": path, "size": stat.st_size, "modified": stat.st_mtime_ns}
    try:
        info = probe(file)
        times: list[float] = []
        steps: list[float] = []
        samples, power, rate, damaged = 0, 0.0, 1, 0
        for frame in decode_all(file):
            if frame is None:
                damaged += 1
            elif isinstance(frame, av.VideoFrame):
                times.append(frame.time if frame.time is not None else len(times) / info.fps)
                steps.append(float(frame.duration * frame.time_base) if frame.duration else 1 / info.fps)
            else:
                values = frame.to_ndarray()
                if values.dtype.kind == "u":
                    values = (values - 128.0) / 128
                elif values.dtype.kind == "i":
                    values = values / np.iinfo(values.dtype).max
                power += float(np.square(np.nan_to_num(values.astype(np.float64))).mean()) * frame.samples
                samples += frame.samples
                rate = frame.sample_rate
    except (MediaError, av.FFmpegError, ValueError, IndexError) as error:
        return Record(**known, problem=str(error).removeprefix(f"{file}: "))
    gaps = np.diff(np.sort(times))
    problems = [f"{damaged} damaged packets"] if damaged else []
    if len(info.codecs) > 1 and not samples:
        problems.append("an audio track without audio")
    return Record(
        **known,
        frames=len(times),
        seconds=max(times) + steps[int(np.argmax(times))] - min(times) if times else 0.0,
        fps=info.fps,
        constant_rate=bool(len(gaps) == 0 or gaps.max() - gaps.min() < 2e-3),
        width=info.width,
        height=info.height,
        video_codec=info.codecs[0],
        audio_codec="".join(info.codecs[1:]),
        has_audio=samples > 0,
        audio_seconds=samples / rate,
        audio_level=max(SILENCE, 10 * math.log10(power / samples)) if power else SILENCE,
        problem="; ".join(problems),
    )


def read_manifest(file: Path) -> dict[str, Record]:
    """The records of a manifest by path, or none where there is no such file.

    Raises:
        InputError: the file is no manifest, or has a path that leads out of the data set's folder.
    """
    return _read(file)[1] if file.is_file() else {}


def _read(file: Path) -> tuple[Path, dict[str, Record]]:
    """The records by path, and the folder that these start from: as noted, or else the one that the manifest is in."""
    # Here, for most runs have no manifest and need not load Arrow.
    import pyarrow as pa
    import pyarrow.parquet as pq

    remedy = "delete it, and run avmae.prepare again"
    try:
        table = pq.read_table(file, columns=[field.name for field in fields(Record)])
        records = {row["path"]: Record(**row) for row in table.to_pylist()}
    except (pa.ArrowException, OSError, TypeError, KeyError) as error:
        raise InputError(f"{file} is not a manifest ({error}); {remedy}") from error
    for path in map(PurePath, records):
        if path.is_absolute() or ".." in path.parts:
            raise InputError(f"{file}: {path} leads out of the data set's folder; {remedy}")
    noted = (table.schema.metadata or {}).get(ROOT)
    return Path(os.fsdecode(noted)) if noted else file.parent, records


def without_unreadable(splits: Splits, manifest: str | Path | None = None) -> Splits:
    """Leave out of training and validation what a manifest calls unreadable.

    Test clips stay: what is not scored has to be counted. The manifest is that of the data set's folder, if it has one,
    or one that lies elsewhere, and then has to be there.

    Raises:
        InputError: the manifest is missing, damaged or of other clips, or the clips are no files.
    """
    root = splits.root
    if root is None:
        if manifest:
            raise InputError(f"data.manifest={manifest} is of files, and these clips are stored in another way")
        return splits
    file = Path(manifest).expanduser() if manifest else root / NAME
    if not file.is_file():
        if manifest:
            raise InputError(f"data.manifest={manifest} does not exist; avmae.prepare output={manifest} writes it")
        return splits
    noted, records = _read(file)
    # Lists may have absolute paths where the root is relative.
    listed = {path: os.path.abspath(path) for path in (str(entry.path) for entry in chain(*splits.parts().values()))}
    for base in (root, noted) if manifest else (root,):
        readable = {os.path.abspath(base / path): record.readable for path, record in records.items()}
        if not readable.keys().isdisjoint(listed.values()):
            break
    else:
        if manifest:
            raise InputError(f"data.manifest={manifest} has none of the data set's clips; give their data.root")
    train, val = ([e for e in part if readable.get(listed[str(e.path)], True)] for part in (splits.train, splits.val))
    return replace(splits, train=train, val=val)


def update_manifest(root: Path, paths: Sequence[str], file: Path, workers: int) -> Iterator[Record]:
    """Inspect those files below a folder that the manifest does not have as they are now; yields each as it is done.

    Every record is kept in a journal beside the manifest at once, so that a run that is killed continues where it was.
    """
    journal = file.with_suffix(".journal")
    written = read_manifest(file)
    known = written | {record.path: record for record in _read_journal(journal)}
    current = {path: known[path] for path in paths if path in known and _unchanged(root, known[path])}
    todo = [path for path in paths if path not in current]
    if not todo and current.keys() == written.keys():
        return
    try:
        with journal.open("a", encoding="utf-8") as stream:
            for record in _inspect_all(root, todo, workers):
                stream.write(json.dumps(asdict(record)) + "\n")
                stream.flush()
                current[record.path] = record
                yield record
        import pyarrow as pa
        import pyarrow.parquet as pq

        temporary = file.with_suffix(".partial")
        table = pa.Table.from_pylist([asdict(current[path]) for path in paths])
        pq.write_table(table.replace_schema_metadata({ROOT: os.fsencode(root.absolute())}), temporary)
        temporary.replace(file)
    except OSError as error:
        raise InputError(f"{file} cannot be written ({error.strerror}); set output= to another place") from error
    journal.unlink()


def _inspect_all(root: Path, queue: list[str], workers: int) -> Iterator[Record]:
    if workers <= 1:
        yield from (inspect(root, path) for path in queue)
        return
    # A decoder that crashes takes its process along: the file is then tried alone, and named.
    while queue:
        done: set[str] = set()
        with suppress(BrokenProcessPool), worker_pool(workers) as pool:
            for record in pool.map(inspect, [root] * len(queue), queue):
                done.add(record.path)
                yield record
            return
        first, *queue = [path for path in queue if path not in done]
        with suppress(BrokenProcessPool), worker_pool(1) as pool:
            yield pool.submit(inspect, root, first).result()
            continue
        stat = (root / first).stat()
        yield Record(first, stat.st_size, stat.st_mtime_ns, problem="the decoder crashed on it")


def _unchanged(root: Path, record: Record) -> bool:
    stat = (root / record.path).stat()
    return (stat.st_size, stat.st_mtime_ns) == (record.size, record.modified)


def _read_journal(file: Path) -> Iterator[Record]:
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            # The last line may have been cut off.
            with suppress(ValueError, TypeError):
                yield Record(**json.loads(line))
