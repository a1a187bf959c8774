"""`python -m avmae.demo ckpt=PATH [classifier=PATH]`: a local web page that reconstructs what one drops on it."""

import ipaddress
import logging
import os
import signal
import tempfile
import threading
from pathlib import Path
from typing import Any

from avmae.cli.command import command
from avmae.errors import InputError


@command("demo")
def main(config: dict[str, Any]) -> None:
    """Load the models and serve the page until the process is interrupted."""
    for key in ("max_mb", "max_minutes"):
        if not isinstance(config[key], int | float) or config[key] <= 0:
            raise InputError(f"{key}={config[key]} must be a number above 0")
    if not (config["port"] is None or (isinstance(config["port"], int) and 0 < config["port"] < 65536)):
        raise InputError(f"port={config['port']} must be from 1 to 65535")
    from avmae.viewing.viewer import Viewer

    host = str(config["host"])
    viewer = Viewer(config["ckpt"], config["classifier"], config["max_minutes"])
    # Hundreds of settings of Gradio's can come from the environment; what this page allows is decided here.
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
    # Gradio greets its own server once it runs, which must not go by way of a proxy.
    os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy"), "localhost", "127.0.0.1", host]))
    # Its client would tell of every request.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="avmae-demo-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        serve(viewer, Path(uploads).resolve(), host, config["port"], config["max_mb"])


def serve(viewer: Any, uploads: Path, host: str, port: int | None, max_mb: float) -> None:
    """Serve the page until SIGINT or SIGTERM.

    Raises:
        InputError: Gradio is not installed, or the address cannot be had.
    """
    try:
        from avmae.viewing.page import build_page, launch
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise InputError("the demo needs Gradio: pip install 'avmae[demo]'") from error

    page = build_page(viewer, uploads)
    try:
        url = launch(page, host, port, max_mb)
    except OSError as error:
        where = f"port {port}" if port else "any port from 7860 to 7959"
        raise InputError(f"cannot serve {host} on {where}; choose another host= or port=") from error
    if not _is_loopback(host):
        print(
            f"warning: host={host} lets every machine that reaches this one upload files and use its processors, "
            "without a password; from your own machine, rather ssh -L 7860:localhost:7860 and leave host= alone"
        )
    print(f"serving {url} until Ctrl+C; nothing leaves this machine", flush=True)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
    page.close(verbose=False)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    main()
