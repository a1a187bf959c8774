"""The demo's page: what is on it, what it may read, and what its server answers to. Needs Gradio."""

import base64
import html
import io
import tempfile
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
from avmae.viewing.pictures import magnify
from avmae.viewing.reconstruction import VIEWS
from avmae.viewing.viewer import TOP, Attention, Panel, View, Viewer

EMPTY = '<p class="hint">Drop a video to see what the model makes of it.</p>'

CSS = """
.view h3 {margin: 0 0 4px; overflow-wrap: anywhere}
.view h4 {margin: 20px 0 4px}
.view p {margin: 0 0 8px; opacity: 0.75}
.view figure {margin: 0; min-width: 0}
.view figcaption {font-size: 14px; margin: 4px 0}
.view video, .view img {width: 100%; display: block; border-radius: 6px; image-rendering: pixelated}
.view .panels {display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); column-gap: 12px}
.view .panel {display: grid; grid-template-rows: subgrid; grid-row: span 4; align-content: start}
.view .heat {display: grid; grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)); gap: 8px}
.view .scale {display: inline-block; width: 64px; height: 10px; border-radius: 3px; background: linear-gradient(
  90deg, rgb(0 0 4), rgb(81 18 124), rgb(183 55 121), rgb(252 137 97), rgb(252 253 191))}
.view button {width: 100%; min-height: 36px; margin-bottom: 6px; border: 1px solid var(--border-color-primary);
  border-radius: 6px; background: var(--button-secondary-background-fill)}
.view button[aria-pressed=true] {background: var(--button-primary-background-fill);
  color: var(--button-primary-text-color)}
.hint {padding: 48px 8px; text-align: center; opacity: 0.75}
#video a {pointer-events: none}
@media (max-width: 640px) {.view .panels {column-gap: 6px}}
"""

LISTEN = """
element.addEventListener('click', event => {
  const chosen = event.target.closest('button');
  if (!chosen) return;
  const hear = chosen.getAttribute('aria-pressed') !== 'true';
  element.querySelectorAll('figure.panel').forEach(panel => {
    const video = panel.querySelector('video'), button = panel.querySelector('button');
    const on = hear && button === chosen;
    video.muted = !on;
    video.currentTime = 0;
    video.play();
    if (button) button.setAttribute('aria-pressed', on);
  });
});
"""
"""Audio of one panel at a time, and all videos from the start."""

ANSWERED = (
    {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json"},
    ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/"),
    {
        f"/gradio_api/{name}"
        for name in (
            "app_id",
            "cancel",
            "info",
            "queue/data",
            "queue/join",
            "reset",
            "startup-events",
            "theme.css",
            "upload",
            "upload_progress",
        )
    },
)
"""Paths, path prefixes and interfaces that the page needs.

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
        exact, prefixes, interfaces = ANSWERED
        path = scope.get("path", "")
        if scope["type"] == "http" and not (path in exact | interfaces or path.startswith(prefixes)):
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


def build_page(viewer: Viewer, uploads: Path) -> gradio.Blocks:
    """The page.

    Args:
        viewer: makes what is shown.
        uploads: folder that Gradio puts uploaded files in; no other file is read, not even by a link in it.
    """

    def show(file: str | None, ratio: float, audio_ratio: float, seed: float, position: float, statistics: str) -> Any:
        empty = [gradio.update(value=None, visible=False)] * 2
        if file is None:
            return [EMPTY, *empty]
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
        return [render(view), *(gradio.update(value=classes, visible=classes is not None) for classes in found)]

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
                result = gradio.HTML(EMPTY, js_on_load=LISTEN)
                with gradio.Row():
                    with_audio = gradio.Label(label="Classes, with audio", num_top_classes=TOP, visible=False)
                    without = gradio.Label(label="Classes, without audio", num_top_classes=TOP, visible=False)
        sliders = (ratio, audio_ratio, position)
        gradio.on(
            [file.upload, file.clear, button.click, seed.submit, statistics.input, *(s.release for s in sliders)],
            show,
            [file, ratio, audio_ratio, seed, position, statistics],
            [result, with_audio, without],
            api_name="reconstruct",
            trigger_mode="always_last",
            concurrency_limit=1,
        )
    page.queue(max_size=16)
    return page


def launch(page: gradio.Blocks, host: str, port: int | None, max_mb: float) -> str:
    """Serve a page from a thread of its own.

    Args:
        page: what `build_page` made.
        host: address to listen on.
        port: None for the first free one from 7860.
        max_mb: size above which an upload is refused, in 10^6 bytes.

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
        css=CSS,
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )
    return url


def render(view: View) -> str:
    """A view as HTML that needs no other file."""
    panels = "".join(_panel(panel, view) for panel in view.panels)
    attended = f"<p>{html.escape(view.note)}</p>" if view.attention is None else _attention(view.attention)
    return (
        f'<div class="view"><h3>{html.escape(view.title)}</h3><p>{html.escape(view.metrics)}</p>'
        f'<div class="panels">{panels}</div><h4>What the audio attends to</h4>{attended}</div>'
    )


def _panel(panel: Panel, view: View) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "panel.mp4")
        write_video(path, magnify(panel.frames), view.fps, panel.audio, view.sample_rate)
        video = f'<video src="{_uri("video/mp4", path.read_bytes())}" autoplay loop muted playsinline></video>'
    listen = "" if panel.audio is None else '<button type="button" aria-pressed="false">listen</button>'
    spectrogram = "" if panel.spectrogram is None else _image(panel.spectrogram, "spectrogram")
    label = html.escape(panel.label)
    return f'<figure class="panel">{video}<figcaption>{label}</figcaption>{listen}{spectrogram}</figure>'


def _attention(attention: Attention) -> str:
    images = "".join(
        f"<figure>{_image(frame, 'attention')}<figcaption>{second:.2f} s</figcaption></figure>"
        for frame, second in zip(magnify(attention.frames, 96), attention.seconds, strict=True)
    )
    return (
        f"<p>The audio tokens spend {attention.share:.0%} of their attention on video tokens, which are "
        f"{attention.even:.0%} of all; nothing is masked here. Each patch's weight, 1 being an even share: "
        f"0&nbsp;<span class='scale'></span>&nbsp;{attention.peak:.1f}.</p>"
        f'<div class="heat">{images}</div>'
    )


def _image(pixels: np.ndarray, alt: str) -> str:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return f'<img alt="{alt}" src="{_uri("image/png", data.getvalue())}">'


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
