"""Run the commands as a user does: as processes, in a folder of their own."""

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# W&B and Hydra must behave alike on every machine that runs the tests.
os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", HYDRA_FULL_ERROR="0")
# Asked by way of CUDA, whether there is a GPU could not be asked again in processes that are forked.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
CALLBACKS = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
"""Environment in which the callbacks of these tests are found."""


TINY = [
    "clip.frames=4",
    "clip.size=32",
    "clip.mel_bins=32",
    "model.video_patch=[2,8,8]",
    "size=tiny",
    "size.dim=48",
    "size.depth=2",
    "size.audio_depth=1",
    "size.decoder_dim=24",
    "size.decoder_depth=1",
    "data.batch_size=4",
    "data.workers=0",
    "trainer.accelerator=cpu",
    "callbacks.reconstructions.clips=0",
]
"""Overrides that make any experiment a matter of seconds."""


class Process:
    """A Python process in a session of its own, started as by a shell, whose output goes to a file.

    Args:
        arguments: of `python`, of which `-m` and the like come first.
        cwd: the folder in which it runs.
        output: the file.
        env: of its environment, what differs from `ENVIRONMENT`.
        file_size: above which the kernel lets it write no file, in bytes.
    """

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        output: Path = Path(os.devnull),
        env: dict[str, str] | None = None,
        file_size: int = -1,
    ) -> None:
        with tempfile.NamedTemporaryFile(delete=False) as code:
            self._code = Path(code.name)
        where = {"cwd": str(Path(cwd).resolve()), "output": str(output), "code": str(self._code)}
        request = {"arguments": arguments, "env": ENVIRONMENT | (env or {}), "file_size": file_size, **where}
        server = _preloaded()
        output.write_bytes(b"")
        print(json.dumps(request), file=server.stdin, flush=True)
        self.pid, self._ended = int(server.stdout.readline()), None

    def poll(self) -> int | None:
        """The exit code, negative for a signal, if it has ended."""
        if self._ended is None and (code := self._code.read_text()).endswith("\n"):
            self._ended = int(code)
            self._code.unlink()
        return self._ended

    def wait(self, timeout: float = 240) -> int:
        """The exit code when it has ended; fails, and kills it, if that takes longer."""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                os.killpg(self.pid, signal.SIGKILL)
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, if it has not ended."""
        self.send_signal(signal.SIGKILL)


@functools.cache
def _preloaded() -> subprocess.Popen:
    script = Path(__file__).with_name("preloaded.py")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen([sys.executable, str(script)], env=ENVIRONMENT, **pipes)
    atexit.register(server.stdin.close)
    return server


def python(*arguments: str, cwd: Path, ok: bool = True, timeout: float = 240, **how) -> str:
    """Run Python and return what it printed; it must end well, or badly with ok=False."""
    with tempfile.NamedTemporaryFile("r", errors="replace") as output:
        code = Process(*arguments, cwd=cwd, output=Path(output.name), **how).wait(timeout)
        printed = output.read()
    assert (code == 0) == ok, printed
    return printed


def run(command: str, *overrides: str, **how) -> str:
    """Run `python -m avmae.COMMAND`; see `python`."""
    return python("-m", f"avmae.{command}", *overrides, **how)


def train(*overrides: str, cwd: Path, miniature: Path | None = None, **kwargs) -> str:
    """Run a tiny training."""
    return run("train", *tiny_arguments(overrides, miniature), cwd=cwd, **kwargs)


def start_train(*overrides: str, cwd: Path, miniature: Path, **how) -> Process:
    """Start a tiny training and leave it running."""
    return Process("-m", "avmae.train", *tiny_arguments(overrides, miniature), cwd=cwd, **how)


def tiny_arguments(overrides: tuple[str, ...], miniature: Path | None) -> list[str]:
    """Of a tiny training."""
    data = ["data=ucf101", f"data.root={miniature}", "data.val_groups=1"] if miniature else []
    # Flags come first, for Hydra wants its overrides in one piece; later overrides win.
    flags = [o for o in overrides if o.startswith("-")]
    return [*flags, *data, *TINY, *(o for o in overrides if o not in flags)]


def error(output: str) -> str:
    """The message of a failed command; a traceback is none."""
    assert "Traceback" not in output, output
    assert output.count("error: ") == 1, output
    return output[output.index("error: ") :]
