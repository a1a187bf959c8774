"""Run the commands as a user does: as processes, in a folder of their own."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import TINY

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def run(command: str, *overrides: str, cwd: Path, ok: bool = True, timeout: float = 240) -> str:
    """Run `python -m avmae.COMMAND` and return what it printed; it must end well, or badly with ok=False."""
    process = subprocess.run(
        [sys.executable, "-m", f"avmae.{command}", *overrides],
        cwd=cwd,
        env=ENVIRONMENT,
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
    return run("train", *_arguments(overrides, miniature), cwd=cwd, **kwargs)


def start_train(
    *overrides: str,
    cwd: Path,
    miniature: Path,
    output: Path = Path(os.devnull),
    env: dict[str, str] | None = None,
    **how,
) -> subprocess.Popen:
    """Start a tiny training, whose output goes to a file, and leave it running."""
    arguments = [sys.executable, "-m", "avmae.train", *_arguments(overrides, miniature)]
    with output.open("w") as stream:
        return subprocess.Popen(
            arguments, cwd=cwd, env=ENVIRONMENT | (env or {}), stdout=stream, stderr=subprocess.STDOUT, **how
        )


def _arguments(overrides: tuple[str, ...], miniature: Path | None) -> list[str]:
    data = ["data=ucf101", f"data.root={miniature}", "data.val_groups=1"] if miniature else []
    # Flags come first, for Hydra wants its overrides in one piece; later overrides win.
    flags = [o for o in overrides if o.startswith("-")]
    return [*flags, *data, *TINY, *(o for o in overrides if o not in flags)]


def error(output: str) -> str:
    """The message of a failed command; a traceback is none."""
    assert "Traceback" not in output, output
    assert output.count("error: ") == 1, output
    return output[output.index("error: ") :]
