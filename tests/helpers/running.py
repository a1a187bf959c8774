"""Runs that are under way: waiting for what they do, their processes, and a SLURM that notes what it is asked."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
from commands import ENVIRONMENT, Process

ARGUMENTS = ("name=run", "trainer.max_epochs=20", "trainer.log_every_n_steps=1", "model.drop_path=0.5")
"""40 steps in which a bit that is lost would show."""

LONG = ("name=run", "trainer.max_epochs=2000", "data.batch_size=2", "data.val_groups=0")
"""A run that is still going when something happens to it."""

Start = Callable[..., Process]


def wait_for(found: Callable[[], object], process: Process, output: Path | None = None) -> None:
    while not found():
        assert process.poll() is None, output.read_text() if output else "the run ended early"
        time.sleep(0.005)


def trained(folder: Path, rows: int) -> Callable[[], bool]:
    """Whether a run has logged so many rows."""
    return lambda: any(len(file.read_text().splitlines()) > rows for file in folder.glob("*/metrics.csv"))


def descendants(pid: int) -> list[int]:
    return [process.pid for process in psutil.Process(pid).children(recursive=True)]


def running(pids: list[int]) -> list[int]:
    """Those that are there, zombies apart."""
    found = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            found += [pid] if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE else []
    return found


def gone(pids: list[int]) -> bool:
    """Whether all have ended; multiprocessing's own resource tracker does so when it has seen the last one end."""
    end = time.monotonic() + 20
    while running(pids) and time.monotonic() < end:
        time.sleep(0.05)
    return not running(pids)


def slurm(folder: Path) -> dict[str, str]:
    """Environment of a SLURM job whose `scontrol` writes down what it is asked for."""
    program = folder / "bin/scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n')
    program.chmod(0o755)
    return {"SLURM_JOB_ID": "17", "PATH": f"{program.parent}:{ENVIRONMENT['PATH']}"}
