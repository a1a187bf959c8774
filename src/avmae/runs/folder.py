"""The folder of a run: where it lies, and which of its checkpoints the run resumes from."""

import os
import shutil
import sys
import zipfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from itertools import chain, count
from pathlib import Path

from avmae.errors import InputError
from avmae.runs.environment import ENVIRONMENT, command_line, starts
from avmae.runs.scheduler import job_id, queued_again, slurm_step, torchrun_id

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
"""The newest checkpoint, and the one that it replaced."""
LATEST = "latest"
"""Symbolic link beside the runs of a name, to the newest that began to train."""
AT_START = (ENVIRONMENT, "hparams.yaml")
"""Files that say how a run was started, beside `.hydra/`."""
SHARDED = "meta.pt"
"""What a sharded checkpoint, a folder, has beside its shards."""


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None; every byte is read and held against its checksum."""
    import torch

    sharded = checkpoint.is_dir()
    file = checkpoint / SHARDED if sharded else checkpoint
    if sharded and not file.is_file():
        return "it is incomplete"
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
        if broken:
            return f"{broken} fails its checksum"
        # What holds the parts together; the parts themselves are left on the disk.
        content = torch.load(file, weights_only=True, mmap=True)
        for name, expected in content.get("checksums", {}).items() if sharded else ():
            if checksum(checkpoint / content["shards"] / name) != expected:
                return f"{name} fails its checksum"
    except Exception as error:
        # The readers raise whatever damaged bytes lead them to.
        return (str(error) or type(error).__name__).splitlines()[0]
    return None


def checksum(file: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 24):
            value = zlib.crc32(block, value)
    return value


def settle_run(
    logs: str, name: str, resume: str | None = None, run_dir: str | None = None, swept: bool = False
) -> tuple[str, str | None]:
    """Make the folder in which a run writes, and find the checkpoint that it resumes: both are decided here alone.

    Args:
        logs: folder of all runs.
        name: of the run.
        resume: `last`, a checkpoint's path, or None for a new run, or for what a scheduler has started again.
        run_dir: the run's folder; None for a new one, or that of the run it resumes.
        swept: the run is a sweep's job. `last` is then what lies in its folder, if anything does.

    Returns:
        Two absolute paths, the second None for a run that begins.

    Raises:
        InputError: there is no intact checkpoint to resume from, or the folder cannot be made.
    """
    given = source = None
    if resume == "last":
        # A folder that is given may be new, and the run be resumed from another one.
        source = Path(run_dir) if run_dir and (swept or _kept(Path(run_dir))) else _newest(logs, name)
    elif resume:
        given = _given(resume)
        source = given.parents[1]
    elif not run_dir:
        source = _left_by_this_job(logs, name)
    folder = Path(run_dir).absolute() if run_dir else source or new_folder(logs, name)
    if queued_again() and job_id() in [start["slurm_job"] for start in starts(folder)]:
        # Whatever `resume` says, for that is where this job began.
        found = newest_intact(folder) or given
    elif given or (run_dir and resume is None):
        found = given
    else:
        # A new folder holds none, but what torchrun restarts finds its own.
        found = newest_intact(source or folder)
        if found is None and source and not swept:
            raise InputError(f"no checkpoint in {source} is intact; start without resume=, or give a path")
    _make(folder)
    return str(folder), str(found) if found else None


def settle_sweep(logs: str, name: str, resume: str | None) -> str:
    """Where a sweep writes: a new folder, or with ``resume=last`` that of the newest sweep of the name."""
    if resume != "last":
        return str(new_folder(logs, name, "_sweep"))
    # They are named by their time.
    found = sorted(path for path in Path(logs, name).glob("*_sweep*") if path.is_dir())
    if not found:
        raise InputError(f"resume=last: no sweep under {logs}/{name}; start without resume=")
    return str(found[-1])


def new_folder(logs: str, name: str, kind: str = "") -> Path:
    """A folder that torchrun or SLURM names, or a new one named by the time."""
    parent = Path(logs, name).absolute()
    if named := torchrun_id() or slurm_step():
        return parent / f"{named}{kind}"
    time = f"{datetime.now():%Y-%m-%d_%H-%M-%S}{kind}"
    # What began in the same second may have this name.
    names = chain([time], (f"{time}_{number}" for number in count(2)))
    return next(parent / each for each in names if _make(parent / each))


def _make(folder: Path) -> bool:
    """Make a folder; whether it is new."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except OSError as error:
        if folder.is_dir():
            return False
        raise InputError(f"{folder} cannot be made: {error.strerror}; choose another logs=") from error
    return True


def link_latest(run_dir: str, logs: str, name: str) -> None:
    """Have LOGS/NAME/latest lead to a run's folder, if it lies there and the file system has symbolic links."""
    folder, link = Path(run_dir), Path(logs, name, LATEST).absolute()
    if folder.parent != link.parent:
        return
    new = link.with_name(f".{LATEST}.{os.getpid()}")
    with suppress(OSError):
        new.symlink_to(folder.name)
        new.replace(link)
    # It is left where something else has the name.
    with suppress(OSError):
        new.unlink()


def discard_unused(run_dir: str, logs: str, name: str) -> None:
    """Delete the folder of a run that was refused before it left anything there but how it was started.

    LOGS/NAME and LOGS go with it, if they are then empty.
    """
    folder = Path(run_dir)
    files = [file.relative_to(folder) for file in folder.rglob("*") if not file.is_dir()]
    if any(file.parts[0] not in (".hydra", *AT_START) for file in files):
        return
    shutil.rmtree(folder, ignore_errors=True)
    above = Path(logs, name).absolute()
    if folder.parent != above:
        return
    with suppress(OSError):
        if (above / LATEST).is_symlink() and not (above / LATEST).exists():
            (above / LATEST).unlink()
        above.rmdir()
        Path(logs).absolute().rmdir()


def newest_intact(run_dir: Path) -> Path | None:
    """The newest checkpoint in a run's folder that is not damaged; of those that are, it is said."""
    for path in _kept(run_dir):
        wrong = damage(path)
        if wrong is None:
            return path.absolute()
        print(f"{path} is damaged ({wrong})", file=sys.stderr, flush=True)
    return None


def _kept(run_dir: Path) -> list[Path]:
    """What a run can be resumed from, the newest first."""
    return [path for name in (LAST, PREVIOUS) if (path := run_dir / "checkpoints" / name).exists()]


def _given(resume: str) -> Path:
    """The checkpoint of `resume=PATH`."""
    path = Path(resume).expanduser()
    if not path.exists():
        raise InputError(f"resume={resume} is not a file; give a checkpoint's path, or resume=last")
    if path.absolute().parent.name != "checkpoints":
        raise InputError(
            f"resume={resume} is in no run's checkpoints/, and a resumed run writes to its own folder; move it "
            "back, or start a new run from its weights with ckpt="
        )
    if wrong := damage(path):
        raise InputError(f"resume={resume} is damaged ({wrong}); resume=last takes the newest that is intact")
    folder = path.absolute().parents[1]
    # The run is to continue in its own folder, whatever the link leads to by then.
    return (folder.resolve() if folder.name == LATEST else folder) / "checkpoints" / path.name


def _newest(logs: str, name: str) -> Path:
    """The folder of the run of a name that has the newest checkpoint."""
    if (newest := _newest_of(_runs(logs, name))) is None:
        swept = any(Path(logs, name).glob(f"*_sweep*/*/checkpoints/{LAST}"))
        hint = "its jobs are a sweep's, which is resumed with -m" if swept else "start without resume="
        raise InputError(f"resume=last: no checkpoint of a run under {logs}/{name}; {hint}, or give a path")
    return newest


def _left_by_this_job(logs: str, name: str) -> Path | None:
    """The folder in which this command trained before its job was queued again, if it left a checkpoint there."""
    if torchrun_id() or not queued_again():
        return None
    # A job may train several times under one name, as for each fold.
    this = (job_id(), command_line())
    found = _runs(logs, name)
    return _newest_of(f for f in found if this in [(start["slurm_job"], start["command"]) for start in starts(f)])


def _runs(logs: str, name: str) -> list[Path]:
    return [folder for folder in Path(logs, name).glob("*") if folder.name != LATEST]


def _newest_of(run_dirs: Iterable[Path]) -> Path | None:
    times = {folder: max(path.stat().st_mtime for path in kept) for folder in run_dirs if (kept := _kept(folder))}
    return max(times, key=lambda folder: times[folder]).absolute() if times else None
