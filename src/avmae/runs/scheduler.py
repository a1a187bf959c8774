"""What SLURM, submitit and torchrun say of the job that this process is part of, and how a job is queued again."""

import os
import signal
import subprocess
import sys
from typing import Any


def queue_again(number: int, handler: Any) -> None:
    """Ask the scheduler to start this job again, if that is what a signal means.

    Args:
        number: of the signal, which has been acted on.
        handler: that the signal had before this run took it over. In a job of submitit's that is what queues it again,
            by a SystemExit, or a RuntimeError after too many time-outs; else SIGUSR1 does so in one of SLURM's.
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
    """The id of the job that this process is part of, which a requeue keeps: submitit's on this machine, or SLURM's."""
    return os.environ.get("SUBMITIT_LOCAL_JOB_ID") or slurm_job()


def slurm_job() -> str | None:
    """The id of the SLURM job that this process is part of, which a requeue keeps."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def queued_again() -> bool:
    """Whether this may not be the first start of the job: SLURM counts them, submitit does not say."""
    return "SUBMITIT_LOCAL_JOB_ID" in os.environ or int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0


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
