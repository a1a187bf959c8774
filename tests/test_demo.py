"""The demo's page, driven over HTTP as browsers and attackers do. Needs the extra `demo`."""

import base64
import html
import io
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import av
import numpy as np
import pytest
from media_files import write_media
from served import SETTINGS, Server, start, write_checkpoints
from systems import CLIP

from avmae.demo import demo
from avmae.errors import InputError

pytest.importorskip("gradio", reason="pip install 'avmae[demo]'")
gradio_client = pytest.importorskip("gradio_client")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("demo")
    write_checkpoints(folder)
    server = start(folder, f"classifier={folder}/classifier.ckpt", "max_mb=1", "max_minutes=0.5")
    yield server
    print((folder / "printed.txt").read_text())
    server.process.kill()
    server.process.wait()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_media(tmp_path_factory.mktemp("clip") / "a & <b>.mp4", frames=50)


def videos(page: str) -> list[tuple[np.ndarray, bool]]:
    """The videos of a page, (T, H, W, 3) uint8, and whether each has sound."""
    found = []
    for data in re.findall(r'<video src="data:video/mp4;base64,([^"]+)"', page):
        with av.open(io.BytesIO(base64.b64decode(data))) as container:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
            found.append((frames, bool(container.streams.audio)))
    return found


def test_an_upload_is_reconstructed_attended_to_and_classified(server: Server, clip: Path) -> None:
    client = gradio_client.Client(server.url, verbose=False)
    page, heard, seen = client.predict(gradio_client.handle_file(clip), *SETTINGS.values(), api_name="/reconstruct")
    (original, *_), (masked, *_), (reconstructed, *_) = videos(page)
    assert all(sounds for _, sounds in videos(page))
    assert len(original) == len(masked) == len(reconstructed) == CLIP.frames
    grey = np.abs(masked.astype(int) - 128).max(-1) < 12
    assert 0.4 < grey.mean() < 0.6
    errors = [np.abs(frames.astype(int) - original).mean(-1)[~grey].mean() for frames in (masked, reconstructed)]
    assert max(errors) < 6, "what was visible is as it was, but for the codec"
    assert page.count('<img alt="spectrogram"') == 3
    assert page.count('<img alt="attention"') == CLIP.frames // 2
    for classes in (heard, seen):
        found = classes.get("value", classes)["confidences"]
        assert sum(row["confidence"] for row in found) == pytest.approx(1, abs=1e-4)


def test_names_are_no_markup_and_nothing_comes_from_elsewhere(server: Server, clip: Path) -> None:
    (uploaded,) = server.upload(clip).json()
    works, data = server.show(uploaded)
    assert works
    assert "<b>" not in data[0]
    title = re.search(r"<h3>(.*?): ", data[0])
    assert title is not None
    assert html.unescape(title[1]) == Path(uploaded).name
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", data[0])
    policy = server.ask("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy


def test_paths_and_addresses_of_a_client_are_not_read(server: Server, clip: Path) -> None:
    (uploaded,) = server.upload(clip).json()
    assert server.show(uploaded)[0], "otherwise the refusals below mean nothing"
    uploads = next((server.folder / "temporary").glob("avmae-demo-*"))
    assert Path(uploaded).is_relative_to(uploads)
    link = uploads / "link.mp4"
    link.symlink_to(clip)
    outside = [
        "/etc/passwd",
        str(clip),
        f"{server.folder}/last.ckpt",
        f"{uploads}/../../last.ckpt",
        f"{Path(uploaded).parent}/../../../../{'../' * 20}etc/passwd",
        os.path.relpath(clip, server.folder),
        "last.ckpt",
        str(link),
        str(uploads),
        f"file://{clip}",
        f"{server.url}/gradio_api/info",
        "https://example.com/clip.mp4",
        "concat:/etc/passwd",
    ]
    before = {path for path in uploads.rglob("*") if path.is_file()}
    for path in outside:
        works, message = server.show(path)
        assert not works, path
        assert "root:" not in str(message)
    assert {path for path in uploads.rglob("*") if path.is_file()} == before, "nothing was copied or fetched"
    assert "example.com" not in (server.folder / "watched.txt").read_text()


@pytest.mark.parametrize(
    "path",
    [
        "file=/etc/passwd",
        "file=../../../../../../etc/passwd",
        "file/etc/passwd",
        "file=UPLOADED",
        "proxy=http://127.0.0.1/",
        "process_recording",
        "runs",
        "api/reconstruct",
        "run/reconstruct",
        "call/reconstruct",
        "../gradio_api/file=/etc/passwd",
    ],
)
def test_what_the_page_does_not_need_is_not_answered(path: str, server: Server, clip: Path) -> None:
    path = path.replace("UPLOADED", server.upload(clip).json()[0])
    for method in ("GET", "POST", "HEAD"):
        assert server.ask(f"/gradio_api/{path}", method=method).status_code == 404


def test_another_sites_name_is_refused(server: Server) -> None:
    assert server.ask("/config", headers={"host": "evil.example"}).status_code == 400
    assert server.ask("/config", headers={"host": "localhost"}).status_code == 200


def test_only_this_machine_is_served(server: Server) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    # Bound to all addresses, it would answer on this one, too.
    with socket.socket() as visitor:
        visitor.settimeout(5)
        assert visitor.connect_ex(("127.0.0.2", port)) != 0


def test_large_and_long_files_are_refused(server: Server, tmp_path: Path) -> None:
    large = tmp_path / "large.mp4"
    large.write_bytes(bytes(1_100_000))
    answer = server.upload(large)
    assert answer.status_code == 413
    long = write_media(tmp_path / "long.mp4", frames=31, rate=1, audio=None)
    works, message = server.show(server.upload(long).json()[0])
    assert not works
    assert message == "long.mp4: lasts 31 s, more than max_minutes=0.5 allows; cut it"


def test_what_is_wrong_is_said(server: Server, clip: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a video")
    works, message = server.show(server.upload(text).json()[0])
    assert not works
    assert message.startswith("notes.txt: "), "the name, and not where the server keeps it"
    (uploaded,) = server.upload(clip).json()
    for changes in ({"ratio": 2}, {"seed": -1}, {"seed": 1e30}, {"seed": None}, {"position": 7}, {"statistics": "x"}):
        works, message = server.show(uploaded, **changes)
        assert not works, changes
        assert message, changes
        assert "Traceback" not in message


def test_without_a_file_it_asks_for_one(server: Server) -> None:
    client = gradio_client.Client(server.url, verbose=False)
    page, *_ = client.predict(None, *SETTINGS.values(), api_name="/reconstruct")
    assert "Drop a video" in page


def test_it_connects_to_nothing_and_leaves_nothing(clip: Path, tmp_path: Path) -> None:
    write_checkpoints(tmp_path)
    server = start(tmp_path, "host=0.0.0.0")
    assert "warning: host=0.0.0.0" in (tmp_path / "printed.txt").read_text()
    port = server.url.rsplit(":", 1)[1]
    with mock.patch.dict(os.environ), pytest.raises(InputError, match=f"port {port}; choose another"):
        demo(tmp_path / "last.ckpt", port=int(port)).__enter__()
    assert server.show(server.upload(clip).json()[0])[0]
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    assert not any((tmp_path / "temporary").glob("avmae-demo-*"))
    watched = (tmp_path / "watched.txt").read_text().splitlines()
    assert watched, "otherwise nothing was watched"
    hosts = {line.split()[1] for line in watched}
    assert hosts <= {"127.0.0.1", "localhost", "0.0.0.0", "None"}


@pytest.mark.parametrize("changes", [{"max_mb": 0}, {"max_minutes": "x"}, {"port": "abc"}, {"port": 70_000}], ids=str)
def test_bad_settings_are_named(changes: dict[str, Any]) -> None:
    ((key, value),) = changes.items()
    with pytest.raises(InputError, match=f"{key}={value}"):
        demo("x", **changes).__enter__()
