"""Run the commands as a user does: as processes, in a folder of their own."""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from conftest import TINY

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
CALLBACKS = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
"""Environment in which the callbacks of these tests are found."""


@functools.cache
def _preloaded() -> subprocess.Popen:
    script = Path(__file__).with_name("preloaded.py")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen([sys.executable, str(script)], env=ENVIRONMENT, **pipes)
    atexit.register(server.stdin.close)
    return server


def run(command: str, *overrides: str, cwd: Path, ok: bool = True, timeout: float = 240) -> str:
    """Run `python -m avmae.COMMAND` and return what it printed; it must end well, or badly with ok=False."""
    server = _preloaded()
    with tempfile.NamedTemporaryFile("r", errors="replace") as output:
        where = {"cwd": str(Path(cwd).resolve()), "output": output.name, "timeout": timeout}
        print(
            json.dumps({"module": f"avmae.{command}", "arguments": overrides, **where}), file=server.stdin, flush=True
        )
        code = int(server.stdout.readline())
        printed = output.read()
    assert (code == 0) == ok, printed
    return printed


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
