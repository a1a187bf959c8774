"""Reading processes: they leave signals to the training process, never outlive it, and can be asked what they read."""

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Sequence

import torch
from torch.utils.data import get_worker_info

from avmae.data.splits import ClipEntry
from avmae.processes import end_with_parent

_CONTEXT = multiprocessing.get_context()


class _Worker(_CONTEXT.Process):  # type: ignore[name-defined, misc]
    """Ignores SIGTERM, so what wants to end it has to kill it; it holds nothing that could be lost."""

    def terminate(self) -> None:
        self.kill()


class _WorkerContext(type(_CONTEXT)):
    Process = _Worker


CONTEXT = _WorkerContext()
"""Of the loaders' processes."""


def prepare_worker(_: int) -> None:
    """Start of a reading process.

    Ctrl-C and a scheduler's signals reach all processes at once. The training process decides, and until it has
    finished its step it needs batches.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


class Readings:
    """What each reading process of a loader is reading, in memory that the training process shares.

    Args:
        workers: how many there are.
    """

    def __init__(self, workers: int) -> None:
        # Process id, clip or -1, start of the reading in nanoseconds.
        self.table = torch.tensor([[0, -1, 0]] * workers, dtype=torch.int64).share_memory_()

    def begin(self, clip: int) -> None:
        """Note that this process starts to read a clip; the training process itself is not noted."""
        if (worker := get_worker_info()) is not None:
            self.table[worker.id] = torch.tensor([os.getpid(), clip, time.monotonic_ns()])

    def end(self) -> None:
        """Note that the clip is read."""
        if (worker := get_worker_info()) is not None:
            self.table[worker.id, 1] = -1

    def explain(self, message: str, entries: Sequence[ClipEntry]) -> str | None:
        """What a loader's complaint means, or None if it is about no process of this loader.

        Args:
            message: of the error that torch's loader raised.
            entries: the clips.
        """
        workers = len(self.table)

        def reading(row: list[int]) -> str:
            pid, clip, since = row
            doing = "between two clips"
            if clip >= 0:
                doing = f"reading {entries[clip].path} for {(time.monotonic_ns() - since) / 1e9:.1f} s"
            number = next(i for i, other in enumerate(self.table.tolist()) if other[0] == pid)
            return f"reading process {number} of {workers} (pid {pid}), {doing}"

        rows = self.table.tolist()
        if dead := re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)(.*)", message):
            pids = {int(pid) for pid in dead[1].split(",")}
            named = [reading(row) for row in rows if row[0] in pids]
            how = re.sub(r" Details are lost.*", "", dead[2]).strip(" .")
            return f"{'; '.join(named)}: {how}" if named else None
        if late := re.search(r"DataLoader timed out after (\S+) seconds", message):
            busy = sorted((row for row in rows if row[1] >= 0), key=lambda row: row[2])
            if not busy:
                return None
            return f"no batch came for {late[1]} s (data.timeout): {'; '.join(reading(row) for row in busy)}"
        return None
