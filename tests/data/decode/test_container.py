"""Files that are damaged, and memory that is given back."""

import ctypes
import gc
import platform
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media_files import FILES, numbered_frame, read_numbers, write_media

from avmae.clip import ClipSpec
from avmae.data.decode.window import probe, read_window
from avmae.errors import MediaError

CLIP = ClipSpec()


class Mallinfo(ctypes.Structure):
    """What glibc says about its heap; `uordblks` is how many bytes are in use."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries do not tell what is in use")
@pytest.mark.parametrize("name", ["as_in_ucf101.avi", "pcm.avi", "program.mpg"])
def test_reading_keeps_no_memory(name: str, tmp_path: Path) -> None:
    path = write_media(tmp_path / name, **FILES[name])
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Mallinfo

    in_use = []
    for _ in range(6):
        for position in np.linspace(0, 1, 20):
            read_window(path, CLIP, position, (32, 32))
        gc.collect()
        in_use.append(mallinfo().uordblks)
    # What is cached settles, and what leaks does not; a packet has 104 bytes.
    assert np.diff(in_use).min() < 20 * 50


def test_files_without_frames_are_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.avi").write_bytes(b"")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5_000))
    (tmp_path / "letter.txt").write_text("a letter\n" * 100)
    (tmp_path / "folder.avi").mkdir()
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream: Any = container.add_stream("pcm_s16le", 8_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8_000), np.int16), layout="mono")
        frame.sample_rate = 8_000
        container.mux(stream.encode(frame))
    whole = write_media(tmp_path / "whole.avi", frames=30).read_bytes()
    (tmp_path / "header.avi").write_bytes(whole[: whole.index(b"movi") + 4])
    for name, reason in {
        "missing.avi": "no such file",
        "empty.avi": "cannot be decoded",
        "noise.mp4": "cannot be decoded",
        "letter.txt": "is no video",
        "folder.avi": "cannot be decoded",
        "sound.wav": "has no video stream",
        "header.avi": "can be decoded",
    }.items():
        for read in (lambda path: read_window(path, CLIP, 0.5), probe):
            with pytest.raises(MediaError) as caught:
                read(tmp_path / name)
            message = str(caught.value)
            assert message.startswith(f"{tmp_path / name}: ")
            assert reason in message
            assert "; " in message


def test_metadata_that_are_not_utf8_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "AAAA"
        stream: Any = container.add_stream("mpeg4", 25)
        stream.height, stream.width, stream.pix_fmt = 96, 160, "yuv420p"
        container.mux([*stream.encode(av.VideoFrame.from_ndarray(numbered_frame(7))), *stream.encode(None)])
    path.write_bytes(path.read_bytes().replace(b"AAAA", b"\xe4\xff\xfe\xe9"))
    with pytest.raises(UnicodeDecodeError):
        av.open(str(path))
    assert read_numbers(read_window(path, CLIP, 0).frames) == [7] * CLIP.frames
