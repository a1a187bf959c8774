"""Commands run side by side, each on a GPU of its own or on an equal share of the cores."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from signal import SIGTERM

from avmae.errors import InputError
from avmae.runs.launch import cores, end_with_parent

Unit = Iterator[tuple[list[str], Path]]
"""Arguments of `python` and the log of its output, in turn: each is asked for when the one before is done."""


def places(jobs: int | None, accelerator: str) -> list[dict[str, str]]:
    """Environments that say where each of so many processes computes; None for one a GPU, or for up to four cores."""
    import torch

    gpus = list(map(str, range(0 if accelerator == "cpu" else torch.cuda.device_count())))
    if gpus and (visible := os.environ.get("CUDA_VISIBLE_DEVICES")):
        # Numbers or names of those that are ours, of all that the machine has.
        gpus = visible.split(",")[: len(gpus)]
    jobs = jobs if jobs is not None else len(gpus) or min(4, cores())
    if jobs < 1:
        raise InputError(f"jobs={jobs} must be at least 1, or null")
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // jobs))}
    return [threads | ({"CUDA_VISIBLE_DEVICES": gpus[job % len(gpus)]} if gpus else {}) for job in range(jobs)]


def run_side_by_side(
    units: Mapping[str, Unit], environments: Sequence[Mapping[str, str]], said: Callable[[str], None]
) -> None:
    """Run each unit's commands in turn, and as many units at once as there are environments.

    Whatever ends this, also a signal or an error of one command, ends the others by SIGTERM; they may save first.

    Args:
        units: by name, in the order in which they begin.
        environments: what is added to each place's environment.
        said: is told which units have ended.

    Raises:
        InputError: a command failed; its message is how the log ends.
    """
    waiting, free = deque(units), deque(environments)
    running: dict[str, tuple[subprocess.Popen[bytes], Path, Mapping[str, str]]] = {}

    def advance(name: str, place: Mapping[str, str]) -> None:
        try:
            arguments, log = next(units[name])
        except StopIteration:
            free.append(place)
            said(name)
            return
        with log.open("a", encoding="utf-8") as stream:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, **place},
                # A terminal's Ctrl-C reaches this process alone, which then ends the others.
                start_new_session=True,
                preexec_fn=partial(end_with_parent, SIGTERM),
            )
        running[name] = process, log, place

    before = signal.signal(SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        while waiting or running:
            while waiting and free:
                advance(waiting.popleft(), free.popleft())
            for name in [name for name, (process, *_) in running.items() if process.poll() is not None]:
                process, log, place = running.pop(name)
                if process.returncode:
                    end = "\n  ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:])
                    raise InputError(f"{name} failed (code {process.returncode}); {log} ends with:\n  {end}")
                advance(name, place)
            time.sleep(0.05)
    finally:
        for process, *_ in running.values():
            process.terminate()
        for process, *_ in running.values():
            process.wait()
        signal.signal(SIGTERM, before)
