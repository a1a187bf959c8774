"""Reading processes: they leave signals to the training process, never outlive it, and can be asked what they read."""

import gc
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import get_worker_info

from avmae.data.splits import ClipEntry
from avmae.runs.launch import end_with_parent

_CONTEXT: Any = multiprocessing.get_context()
_started: dict[int, Any] = {}


class _Worker(_CONTEXT.Process):
    """Ignores SIGTERM, so what wants to end it has to kill it; it holds nothing that could be lost."""

    def start(self) -> None:
        super().start()
        _started[self.pid] = self
        # Multiprocessing ends what is left at exit past the method below, and then waits for it.
        self._popen.terminate = self._popen.kill

    def terminate(self) -> None:
        self.kill()


class _WorkerContext(type(_CONTEXT)):  # type: ignore[misc]
    Process = _Worker


CONTEXT = _WorkerContext()
"""Of the loaders' processes."""


def prepare_worker(_: int) -> None:
    """Start of a reading process.

    Ctrl-C and a scheduler's signals reach all processes at once. The training process decides, and until it has
    finished its step it needs batches.
    """
    # The memory of the training process is shared until either writes to it, as collecting garbage does to all objects.
    gc.freeze()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _report
    end_with_parent()
    worker: Any = get_worker_info()
    worker.dataset.readings.note()


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What multiprocessing's thread that hands batches over ends with; a training process that is gone is no news."""
    if not issubclass(kind, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)


class Readings:
    """What each of so many reading processes of a loader is reading, in memory that the training process shares."""

    def __init__(self, workers: int, entries: Sequence[ClipEntry]) -> None:
        self.entries = entries
        # Process id, clip or -1, start of the reading in nanoseconds.
        self.table = torch.tensor([[0, -1, 0]] * workers, dtype=torch.int64).share_memory_()

    def note(self, clip: int = -1) -> None:
        """Note which clip this process reads, if any; the training process itself is not noted."""
        if (worker := get_worker_info()) is not None:
            self.table[worker.id] = torch.tensor([os.getpid(), clip, time.monotonic_ns()])

    @contextmanager
    def of(self, clip: int) -> Iterator[None]:
        """Note that this process reads a clip as long as the block lasts."""
        self.note(clip)
        try:
            yield
        finally:
            self.note()

    def describe(self, number: int) -> str:
        """What one of the processes is reading, and for how long."""
        pid, clip, since = self.table[number].tolist()
        seconds = (time.monotonic_ns() - since) / 1e9
        what = f"reading {self.entries[clip]} for {seconds:.1f} s" if clip >= 0 else "between two clips"
        return f"reading process {number} of {len(self.table)} (pid {pid}), {what}"


def explain(message: str, loaders: Sequence[Readings]) -> str | None:
    """What a message of torch's loader means: which process died or hangs, at which clip; None if it is another's."""
    rows = [(group.describe(n), row) for group in loaders for n, row in enumerate(group.table.tolist())]
    if dead := re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", message):
        pids = set(map(int, dead[1].split(",")))
        return "; ".join(f"{text}, {_end(pid)}" for text, (pid, _, _) in rows if pid in pids) or None
    if late := re.search(r"DataLoader timed out after (\S+) seconds", message):
        busy = [text for text, (_, clip, _) in rows if clip >= 0]
        return f"no batch came for {late[1]} s (data.timeout): {'; '.join(busy) or 'no reading process is at a clip'}"
    return None


def _end(pid: int) -> str:
    code = _started[pid].exitcode
    if code is None or code >= 0:
        return f"ended with code {code}"
    hint = ", as by a machine that runs out of memory" if code == -signal.SIGKILL else ""
    return f"ended by {signal.Signals(-code).name}{hint}"
