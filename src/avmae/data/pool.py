"""Processes that write and inspect files side by side."""

import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess

from avmae.runs.launch import end_with_parent


class _Worker(SpawnProcess):
    """Leaves Ctrl-C, which reaches all processes at once, to the one that started it, from its first instruction on."""

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(SpawnContext):
    """A fork would copy whatever threads and devices the calling process has running."""

    Process = _Worker


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of so many processes; what still waits when the block is left, also by an error, is not begun."""
    pool = ProcessPoolExecutor(max(1, workers), _Context(), initializer=end_with_parent)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
