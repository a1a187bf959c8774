"""`python -m avmae.demo ckpt=PATH [classifier=PATH]`: a local web page that reconstructs what is dropped on it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avmae.cli.command import command
from avmae.errors import InputError


@contextmanager
def demo(
    ckpt: str | Path,
    classifier: str | Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    max_mb: float = 200,
    max_minutes: float = 120,
) -> Iterator[str]:
    """A context that lasts as long as the page is served, and gives its address.

    Raises:
        InputError: a setting is wrong, a checkpoint or the address cannot be used, or Gradio is not installed.
    """
    for key, value in {"max_mb": max_mb, "max_minutes": max_minutes}.items():
        if not isinstance(value, int | float) or value <= 0:
            raise InputError(f"{key}={value} must be a number above 0")
    if not (port is None or (isinstance(port, int) and 0 < port < 65536)):
        raise InputError(f"port={port} must be from 1 to 65535")
    from avmae.viewing.serving import serve
    from avmae.viewing.viewer import Viewer

    with serve(Viewer(ckpt, classifier, max_minutes), host, port, max_mb) as url:
        yield url


@command("demo")
def main(config: dict[str, Any]) -> None:
    """Serve the page until the process is interrupted."""
    from avmae.viewing.serving import is_local

    with demo(**config) as url:
        if not is_local(config["host"]):
            print(
                f"warning: host={config['host']} lets every machine that reaches this one upload files and use its "
                "processors, without a password; rather use ssh -L 7860:localhost:7860 and leave host= alone"
            )
        print(f"serving {url} until Ctrl+C; nothing leaves this machine", flush=True)
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        stopped.wait()


if __name__ == "__main__":
    main()
