"""The demo's page: what is on it, what it may read, and what its server answers to. Needs Gradio."""

import html
import io
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import gradio
import numpy as np
from PIL import Image
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from avmae.data.decode.encode import write_video
from avmae.errors import InputError
from avmae.viewing.images import magnify
from avmae.viewing.reconstruction import VIEWS
from avmae.viewing.templates import FOLDER, data_address, render
from avmae.viewing.viewer import TOP, Panel, View, Viewer

EMPTY = '<p class="hint">Drop a video to see what the model makes of it.</p>'
GRADIO = ("app_id", "cancel", "info", "queue/data", "queue/join", "reset", "startup-events", "theme.css")
EXACT = {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json"}
EXACT |= {f"/gradio_api/{name}" for name in (*GRADIO, "upload", "upload_progress")}
PREFIXES = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/")
"""Paths that the page needs.

Gradio has many more: some hand out files, fetch addresses or run programs on what is sent to them.
"""

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "object-src 'none'; frame-ancestors 'none'"
)
"""With it, browsers ask no other server for anything."""
FOREIGN = "only files that were uploaded to this page are read"


class Guard:
    """Answers what the page needs, nothing else, and tells browsers to load from here alone."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on or refuse it."""
        path = scope.get("path", "")
        if scope["type"] == "http" and not (path in EXACT or path.startswith(PREFIXES)):
            await PlainTextResponse("not part of this page", 404)(scope, receive, send)
            return

        async def forward(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = ((b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff"))
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        await self.app(scope, receive, forward)


def upload_field(**settings: Any) -> gradio.File:
    """A file field that takes no addresses.

    A client names its upload by a path on the server. Gradio itself accepts only paths in its folder of uploads, but
    would fetch an address that is given instead, for which it has no setting.
    """
    field = gradio.File(**settings)

    async def keep(url_or_file_path: str | Path | None) -> str:
        if not Path(str(url_or_file_path)).is_file():
            raise gradio.Error(FOREIGN, print_exception=False)
        return str(url_or_file_path)

    # Of a class derived from its own, Gradio would write a stub file next to this one.
    field.async_move_resource_to_block_cache = keep
    return field


def answer(viewer: Viewer, uploads: Path, file: str | None, *settings: Any) -> list[Any]:
    """What the page shows of a file, if it lies in the folder of uploads, and what of its classes."""
    ratio, audio_ratio, seed, position, statistics = settings
    if file is None:
        return [EMPTY, *[gradio.update(value=None, visible=False)] * 2]
    path = Path(file).resolve()
    view_name = next((key for key, label in VIEWS.items() if label == statistics), None)
    try:
        if not path.is_relative_to(uploads):
            raise InputError(FOREIGN)
        if view_name is None or None in (ratio, audio_ratio, position):
            raise InputError("every setting needs a value")
        if seed is None or not 0 <= seed < 2**31:
            raise InputError(f"the seed must be a whole number from 0 to {2**31 - 1}")
        view = viewer.view(path, ratio, audio_ratio, int(seed), position, view_name)
    except InputError as error:
        message = html.escape(str(error).replace(str(path), path.name))
        raise gradio.Error(message, duration=None, title="Cannot be shown", print_exception=False) from error
    found = (view.with_audio, view.without_audio)
    return [show_view(view), *(gradio.update(value=classes, visible=classes is not None) for classes in found)]


def build_page(viewer: Viewer, uploads: Path) -> gradio.Blocks:
    """The page; Gradio puts uploaded files in a folder, and no other file is read, not even by a link in it."""
    # Uploads are kept for an hour, for sliders to be moved.
    with gradio.Blocks(title="avmae", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.Markdown(f"# avmae\n{viewer.name}: most of a video is masked, and reconstructed from what is left.")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=280):
                file = upload_field(label="Video", type="filepath", height=140, elem_id="video")
                ratio = gradio.Slider(0.05, 0.95, viewer.mask.ratio, step=0.05, label="Masked, video")
                audio_ratio = gradio.Slider(
                    0.05, 0.95, viewer.mask.audio_ratio, step=0.05, label="Masked, audio", visible=viewer.takes_audio
                )
                position = gradio.Slider(0, 1, 0.5, step=0.01, label="Position in the video")
                statistics = gradio.Radio(
                    list(VIEWS.values()),
                    value=VIEWS["true"],
                    label="Mean and standard deviation of masked patches",
                    visible=viewer.model.normalize_target,
                )
                seed = gradio.Number(0, label="Seed of the mask", precision=0)
                button = gradio.Button("Reconstruct", variant="primary")
            with gradio.Column(scale=3, min_width=320):
                result = gradio.HTML(EMPTY, js_on_load=(FOLDER / "demo.js").read_text())
                with gradio.Row():
                    with_audio = gradio.Label(label="Classes, with audio", num_top_classes=TOP, visible=False)
                    without = gradio.Label(label="Classes, without audio", num_top_classes=TOP, visible=False)
        sliders = (ratio, audio_ratio, position)
        gradio.on(
            [file.upload, file.clear, button.click, seed.submit, statistics.input, *(s.release for s in sliders)],
            partial(answer, viewer, uploads),
            [file, ratio, audio_ratio, seed, position, statistics],
            [result, with_audio, without],
            api_name="reconstruct",
            trigger_mode="always_last",
            concurrency_limit=1,
        )
    page.queue(max_size=16)
    return page


def launch(page: gradio.Blocks, host: str, port: int | None, max_mb: float) -> str:
    """Serve a page from a thread of its own; see `avmae.viewing.serving.serve`.

    Returns:
        Where it is.

    Raises:
        OSError: the address cannot be had.
    """
    middleware = [Middleware(Guard)]
    if host in ("127.0.0.1", "localhost"):
        # Or another site could give its own name this address, and read the page.
        middleware.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"]))
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=False,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        num_workers=0,
        max_file_size=round(max_mb * 1e6),
        app_kwargs={"middleware": middleware, "docs_url": None, "redoc_url": None, "openapi_url": None},
        css_paths=FOLDER / "demo.css",
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )
    return url


def show_view(view: View) -> str:
    """A view as HTML that needs no other file."""

    def video(panel: Panel) -> str:
        with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
            rate = view.clip.fps / view.clip.stride
            write_video(file.name, magnify(panel.frames), rate, panel.audio, view.clip.sample_rate)
            return data_address("video/mp4", Path(file.name).read_bytes())

    def image(pixels: np.ndarray) -> str:
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG")
        return data_address("image/png", data.getvalue())

    return render("demo.html", view=view, video=video, image=image, magnify=magnify)
