"""What a run keeps in its folder to be gone on with and to be repeated: checkpoints and its environment."""

import functools
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import zipfile
import zlib
from datetime import datetime
from pathlib import Path
from typing import Any

from avmae.errors import InputError
from avmae.runs.environment import checkout

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
"""The newest checkpoint, and the one that it replaced."""
ENVIRONMENT = "environment.json"
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
    if not again or job_id() not in {start["slurm_job"] for start in _starts(run_dir)}:
        return None
    return newest_sound(Path(run_dir, "checkpoints"))


def queue_again(number: int, handler: Any) -> None:
    """Ask the scheduler to start this job again, if that is what a signal means.

    Args:
        number: of the signal, which has been acted on.
        handler: that the signal had before this run took it over. In a job of submitit's that is what queues it again;
            else SIGUSR1 does so in one of SLURM's.

    Raises:
        SystemExit: by submitit, which has queued the job.
        RuntimeError: by submitit, which has not, as after too many time-outs.
    """
    if number not in (signal.SIGUSR1, signal.SIGUSR2):
        return
    if callable(handler):
        handler(number, None)
    elif number == signal.SIGUSR1 and (job := slurm_job()) is not None:
        try:
            subprocess.run(["scontrol", "requeue", job], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"job {job} cannot be queued again: {error}", file=sys.stderr, flush=True)


def job_id() -> str | None:
    """The id of the job that this process is part of, which a requeue keeps: submitit's here, or SLURM's."""
    return submitit_local_job() or slurm_job()


def submitit_local_job() -> str | None:
    """The id of the job that submitit runs on this machine (``cluster=local``)."""
    return os.environ.get("SUBMITIT_LOCAL_JOB_ID")


def slurm_job() -> str | None:
    """The id of the SLURM job that this process is part of, which a requeue keeps."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def slurm_step() -> str | None:
    """A name for what one `srun` starts as several processes, which all of them know; None elsewhere."""
    if int(os.environ.get("SLURM_NTASKS", 1)) == 1 or "SLURM_STEP_ID" not in os.environ:
        return None
    # After a requeue, steps are counted from 0 again.
    again = os.environ.get("SLURM_RESTART_COUNT", "0")
    return f"{slurm_job()}.{os.environ['SLURM_STEP_ID']}" + (f"_{again}" if again != "0" else "")


def torchrun_id() -> str | None:
    """What torchrun's --rdzv-id calls the run; all nodes share it, and a restart keeps it."""
    run = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return run if run != "none" and "RANK" in os.environ else None


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
    this = (slurm_job(), _command())
    return [p for p in found if this in [(start["slurm_job"], start["command"]) for start in _starts(p.parents[1])]]


def _starts(run_dir: str | Path) -> list[dict[str, Any]]:
    file = Path(run_dir, ENVIRONMENT)
    return json.loads(file.read_text()) if file.is_file() else []


def started_in(ckpt: str | Path) -> str | None:
    """The folder in which the run of a checkpoint was last started, which its relative paths start from, if known."""
    starts = _starts(Path(ckpt).expanduser().absolute().parent.parent)
    return starts[-1].get("folder") if starts else None


def record_environment(run_dir: str | Path, resumed: str | None) -> None:
    """Add this start to the run's `environment.json`: when, where, how it was called, with what.

    Args:
        run_dir: the run's folder.
        resumed: the checkpoint that the run goes on from.
    """
    installed = {package.name: package.version for package in importlib.metadata.distributions() if package.name}
    start: dict[str, Any] = {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": _command(),
        "folder": os.getcwd(),
        "host": platform.node(),
        "slurm_job": job_id(),
        "resumed": resumed,
        "git": {"avmae": _commit(Path(__file__).parent), "folder": _commit(Path.cwd())},
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "gpus": _gpus(),
        "python": platform.python_version(),
        "versions": dict(sorted(installed.items())),
    }
    temporary = Path(run_dir, f".{ENVIRONMENT}.tmp")
    temporary.write_text(json.dumps([*_starts(run_dir), start], indent=2))
    temporary.replace(Path(run_dir, ENVIRONMENT))


def _command() -> str:
    """How this process was called."""
    spec = sys.modules["__main__"].__spec__
    program = ["-m", spec.name] if spec else sys.argv[:1]
    return shlex.join([sys.executable, *program, *sys.argv[1:]])


def _commit(folder: Path) -> str | None:
    """The commit that a folder is checked out from, with a mark if tracked files differ; None outside of git."""
    commit, changed = checkout(folder)
    return f"{commit} with changes" if changed else commit


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
