"""What is really in each file of a data set, found by decoding it, as one table beside the data."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
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
    """One file, as found by decoding all of it.

    Args:
        path: relative to the data set's folder.
        size: of the file, in bytes; with `modified` it says whether the file is still the one that was read.
        modified: time of the last change, in nanoseconds.
        frames: how many could be decoded.
        seconds: when the last of them ends.
        fps: frames per second, on average.
        constant_rate: whether all frames last equally long.
        width: as displayed, in pixels.
        height: as displayed, in pixels.
        video_codec: name; empty where nothing could be decoded.
        audio_codec: name; empty without an audio track.
        has_audio: whether any audio could be decoded.
        audio_seconds: length of the audio.
        audio_level: root mean square, in dB below full scale.
        problem: what is wrong with the file; empty if nothing is.
    """

    path: str
    size: int
    modified: int
    frames: int = 0
    seconds: float = 0.0
    fps: float = 0.0
    constant_rate: bool = False
    width: int = 0
    height: int = 0
    video_codec: str = ""
    audio_codec: str = ""
    has_audio: bool = False
    audio_seconds: float = 0.0
    audio_level: float = SILENCE
    problem: str = ""

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
        audio_codec=info.codecs[1] if len(info.codecs) > 1 else "",
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
    if not file.is_file():
        return {}
    # Here, for most runs have no manifest and need not load Arrow.
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [field.name for field in fields(Record)]
    try:
        records = {row["path"]: Record(**row) for row in pq.read_table(file, columns=names).to_pylist()}
    except (pa.ArrowException, OSError, TypeError, KeyError) as error:
        raise InputError(f"{file} is not a manifest ({error}); delete it, and run avmae.prepare again") from error
    for path in map(PurePath, records):
        if path.is_absolute() or ".." in path.parts:
            raise InputError(
                f"{file}: {path} leads out of the data set's folder; delete it, and run avmae.prepare again"
            )
    return records


def manifest_root(file: Path) -> Path:
    """The folder that a manifest's paths start from: what `update_manifest` noted, else the folder that it is in.

    Raises:
        InputError: the file is no manifest.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        noted = (pq.read_schema(file).metadata or {}).get(ROOT)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} is not a manifest ({error}); delete it, and run avmae.prepare again") from error
    return Path(os.fsdecode(noted)) if noted else file.parent


def without_unreadable(splits: Splits, manifest: str | Path | None = None) -> Splits:
    """Leave out of training and validation what a manifest calls unreadable.

    Test clips stay: what is not scored has to be counted.

    Args:
        splits: of the data set; its root is the folder of its manifest, if it has one.
        manifest: one that lies elsewhere, and then has to be there.

    Raises:
        InputError: the manifest is missing, damaged or of other clips, or the clips are no files.
    """
    root = splits.root
    if root is None:
        if manifest:
            raise InputError(f"data.manifest={manifest} is of files, and these clips are stored in another way")
        return splits
    file = Path(manifest).expanduser() if manifest else root / NAME
    if manifest and not file.is_file():
        raise InputError(
            f"data.manifest={manifest} does not exist; python -m avmae.prepare output={manifest} writes it"
        )
    records = read_manifest(file)
    # Lists may have absolute paths where the root is relative.
    listed = [[(os.path.abspath(str(e.path)), e) for e in part] for part in (splits.train, splits.val, splits.test)]
    readable: dict[str, bool] = {}
    for base in (root, manifest_root(file)) if manifest else (root,):
        readable = {os.path.abspath(base / path): record.readable for path, record in records.items()}
        if any(path in readable for part in listed for path, _ in part):
            break
    else:
        if manifest:
            raise InputError(
                f"data.manifest={manifest} has none of the data set's clips; run avmae.prepare on this data set, "
                "or give the data.root that its paths start from"
            )
    train, val, _ = ([entry for path, entry in part if readable.get(path, True)] for part in listed)
    return replace(splits, train=train, val=val)


def update_manifest(root: Path, paths: Sequence[str], file: Path, workers: int) -> Iterator[Record]:
    """Inspect the files that the manifest does not have as they are now; yields each as it is done.

    Every record is kept in a journal beside the manifest at once, so that a run that is killed continues where it was.

    Args:
        root: folder that the paths start from.
        paths: of all files.
        file: the manifest.
        workers: processes that decode.
    """
    journal = file.with_suffix(".journal")
    known = read_manifest(file) | {record.path: record for record in _read_journal(journal)}
    current = {path: known[path] for path in paths if path in known and _unchanged(root, known[path])}
    todo = [path for path in paths if path not in current]
    if not todo and current.keys() == read_manifest(file).keys():
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


def _inspect_all(root: Path, paths: Iterable[str], workers: int) -> Iterator[Record]:
    queue = list(paths)
    if workers <= 1:
        yield from (inspect(root, path) for path in queue)
        return
    # A decoder that crashes takes its process along: the file is then tried alone, and named.
    while queue:
        done: set[str] = set()
        with suppress(BrokenProcessPool), worker_pool(workers) as pool:
            futures = {path: pool.submit(inspect, root, path) for path in queue}
            for path, future in futures.items():
                record = future.result()
                done.add(path)
                yield record
        queue = [path for path in queue if path not in done]
        if queue and done != set(futures):
            yield _inspect_apart(root, queue.pop(0))


def _inspect_apart(root: Path, path: str) -> Record:
    with worker_pool(1) as pool, suppress(BrokenProcessPool):
        return pool.submit(inspect, root, path).result()
    stat = (root / path).stat()
    return Record(path, stat.st_size, stat.st_mtime_ns, problem="the decoder crashed on it")


def _unchanged(root: Path, record: Record) -> bool:
    stat = (root / record.path).stat()
    return (stat.st_size, stat.st_mtime_ns) == (record.size, record.modified)


def _read_journal(file: Path) -> Iterator[Record]:
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            # The last line may have been cut off.
            with suppress(ValueError, TypeError):
                yield Record(**json.loads(line))
