"""The folder of a run: where it lies, and which of its checkpoints the run resumes from."""

import functools
import os
import sys
import zipfile
import zlib
from pathlib import Path

from avmae.errors import InputError
from avmae.runs.environment import command_line, starts
from avmae.runs.scheduler import job_id, slurm_job, submitit_local_job, torchrun_id

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
"""The newest checkpoint, and the one that it replaced."""
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


@functools.cache
def resume_checkpoint(logs: str, name: str, resume: str) -> Path:
    """The checkpoint that ``resume=`` means; a damaged one is passed over, and that is said.

    Args:
        logs: folder of all runs.
        name: of the run.
        resume: `last` for the newest checkpoint of that name, `requeued` for that of this SLURM job, or a path.

    Raises:
        InputError: there is none that is sound.
    """
    if resume not in ("last", "requeued"):
        path = Path(resume).expanduser()
        if not path.exists():
            raise InputError(f"resume={resume} is not a file; give a checkpoint's path, or resume=last")
        if path.absolute().parent.name != "checkpoints":
            raise InputError(
                f"resume={resume} is in no run's checkpoints/, and a resumed run goes on in its own folder; move it "
                "back, or start a new run from its weights with ckpt="
            )
        if wrong := damage(path):
            raise InputError(f"resume={resume} is damaged ({wrong}); resume=last takes the newest that is sound")
        return path.absolute()
    found = _checkpoints(logs, name, requeued=resume == "requeued")
    if not found:
        swept = any(Path(logs, name).glob(f"*_sweep*/*/checkpoints/{LAST}"))
        hint = "its jobs are a sweep's, which goes on with -m" if swept else "start without resume="
        raise InputError(f"resume=last: no checkpoint of a run under {logs}/{name}; {hint}, or give a path")
    newest = max(found, key=lambda path: path.stat().st_mtime).parent
    if (sound := newest_sound(newest)) is not None:
        return sound
    raise InputError(f"resume=last: no checkpoint in {newest} is sound; start without resume=, or give a path")


def newest_sound(folder: Path) -> Path | None:
    """The newest of a folder's checkpoints that is not damaged; of those that are, it is said."""
    for path in (folder / LAST, folder / PREVIOUS):
        if path.exists():
            wrong = damage(path)
            if wrong is None:
                return path.absolute()
            print(f"{path} is damaged ({wrong})", file=sys.stderr, flush=True)
    return None


@functools.cache
def own_checkpoint(run_dir: str) -> Path | None:
    """What a job that was queued again goes on with, if it left anything in its folder: the newest that is sound.

    The folder of a multirun's job is the same at each start.
    """
    again = submitit_local_job() or int(os.environ.get("SLURM_RESTART_COUNT", 0))
    if not again or job_id() not in {start["slurm_job"] for start in starts(run_dir)}:
        return None
    return newest_sound(Path(run_dir, "checkpoints"))


def requeued(logs: str, name: str) -> str | None:
    """What to go on with if this start is not the first, and if there is anything; else None.

    Returns:
        A path where torchrun named the run, which is then the folder's name; `requeued` in a job of SLURM's.
    """
    if (run := torchrun_id()) is not None:
        folder = Path(logs, name, run, "checkpoints")
        found = [path for path in (folder / LAST, folder / PREVIOUS) if path.exists()]
        return next((str(path) for path in found if damage(path) is None), None)
    if slurm_job() is None or int(os.environ.get("SLURM_RESTART_COUNT", 0)) == 0:
        return None
    return "requeued" if _checkpoints(logs, name, requeued=True) else None


def _checkpoints(logs: str, name: str, requeued: bool) -> list[Path]:
    """All that a run of a name may be gone on with; of a job that was queued again, what this command left."""
    found = [path for file in (LAST, PREVIOUS) for path in Path(logs, name).glob(f"*/checkpoints/{file}")]
    if not requeued:
        return found
    # A job may train several times under one name, as for each fold.
    this = (slurm_job(), command_line())
    return [p for p in found if this in [(start["slurm_job"], start["command"]) for start in starts(p.parents[1])]]
