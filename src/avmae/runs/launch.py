"""Processes that do not outlive the one that started them."""

import ctypes
import multiprocessing
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when the one that started it is gone, however it ended (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        # It ended before the kernel was told.
        os._exit(1)


def started() -> tuple[int, int] | None:
    """Nodes, and processes on each, that torchrun or SLURM has started; None if neither has."""
    if "RANK" in os.environ:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        return int(os.environ["WORLD_SIZE"]) // local, local
    if (tasks := int(os.environ.get("SLURM_NTASKS", 1))) > 1:
        nodes = int(os.environ.get("SLURM_NNODES", 1))
        return nodes, tasks // nodes
    return None


def first_process() -> bool:
    """Whether this is the process that logs."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) == 0
