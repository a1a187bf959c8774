"""Serving the demo's page: in an environment that decides nothing, from a folder that does not outlast it."""

import ipaddress
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avmae.errors import InputError
from avmae.viewing.viewer import Viewer


@contextmanager
def serve(viewer: Viewer, host: str, port: int | None, max_mb: float) -> Iterator[str]:
    """Serve the page as long as the context lasts, and give its address.

    Args:
        viewer: makes what is shown.
        host: address to listen on.
        port: None for the first free one from 7860.
        max_mb: size above which an upload is refused, in 10^6 bytes.

    Raises:
        InputError: Gradio is not installed, or the address cannot be had.
    """
    # Hundreds of Gradio's settings can come from the environment; what this page allows is decided here.
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
    # Gradio greets its own server once it runs, which must not go by way of a proxy.
    os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy"), "localhost", "127.0.0.1", host]))
    # Its client would report every request.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="avmae-demo-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        try:
            from avmae.viewing.page import build_page, launch
        except ModuleNotFoundError as error:
            if error.name != "gradio":
                raise
            raise InputError("the demo needs Gradio: pip install 'avmae[demo]'") from error

        page = build_page(viewer, Path(uploads).resolve())
        try:
            url = launch(page, host, port, max_mb)
        except OSError as error:
            where = f"port {port}" if port else "any port from 7860 to 7959"
            raise InputError(f"cannot serve {host} on {where}; choose another host= or port=") from error
        try:
            yield url
        finally:
            page.close(verbose=False)


def is_local(host: str) -> bool:
    """Whether an address is one that only this machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
