"""Run the commands as a user does: as processes, in a folder of their own."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import TINY


def run(command: str, *overrides: str, cwd: Path, ok: bool = True, timeout: float = 240) -> str:
    """Run `python -m avmae.COMMAND` and return what it printed; fails unless it ends well (or, with ok=False, badly)."""
    process = subprocess.run(
        [sys.executable, "-m", f"avmae.{command}", *overrides],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    assert (process.returncode == 0) == ok, process.stdout
    return process.stdout


def train(*overrides: str, cwd: Path, miniature: Path | None = None, **kwargs) -> str:
    """Run a tiny training."""
    data = ["data=ucf101", f"data.root={miniature}", "data.val_groups=1"] if miniature else []
    return run("train", *data, *TINY, *overrides, cwd=cwd, **kwargs)


def error(output: str) -> str:
    """The one message of a failed command; a traceback is none."""
    assert "Traceback" not in output, output
    messages = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1, output
    return messages[0]
