"""Videos that are written, and packed copies, hold what they were made of."""

from pathlib import Path

import av
import numpy as np
import pytest
from media_files import audio_delay, read_numbers, tone, write_media

from avmae.clip import ClipSpec
from avmae.data.decode.encode import pack_video, write_video
from avmae.data.decode.window import probe, read_window
from avmae.data.manifest import inspect

CLIP = ClipSpec(frames=8, size=32, mel_bins=32)


class Held:
    """A packed clip in memory."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read_bytes(self) -> bytes:
        return self.content


def test_written_video_is_read_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    colours = np.linspace(30, 220, 24).reshape(8, 3)[rng.permutation(8)]
    frames = np.broadcast_to(colours[:, None, None], (8, 51, 67, 3)).astype(np.uint8)
    waveform = tone(np.arange(2 * 16_000) / 16_000).astype(np.float32)
    path = tmp_path / "a.mp4"
    write_video(path, frames, 6.25, waveform, 16_000)
    with av.open(str(path)) as container:
        assert [stream.codec_context.name for stream in container.streams] == ["h264", "aac"]
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
    info = probe(path)
    assert (info.height, info.width, info.fps, info.seconds) == (52, 68, 6.25, pytest.approx(8 / 6.25))
    window = read_window(path, ClipSpec(frames=8, stride=4), 0)
    assert np.abs(window.frames[:, :51, :67].astype(int) - frames).max() < 10
    assert abs(audio_delay(window.waveform, 16_000, 0)) < 0.005
    write_video(path, frames, 6.25, None, 16_000)
    assert not probe(path).has_audio


class TestPackVideo:
    @pytest.mark.parametrize("position", [0.0, 0.37, 1.0])
    @pytest.mark.parametrize("kind", ["constant", "varying", "late", "short"])
    def test_windows_are_those_of_the_source(self, kind: str, position: float, tmp_path: Path) -> None:
        settings: dict = {
            "constant": {"frames": 110},
            "varying": {"frames": 60, "ticks": np.cumsum(np.tile([1, 3, 2], 20)).tolist()},
            "late": {"frames": 110, "start": 0.7},
            "short": {"frames": 20},
        }[kind]
        source = write_media(tmp_path / "source.mp4", video="libx264", audio="aac", **settings)
        held = Held(pack_video(source, 96, 3, 16_000))
        one, other = (read_window(s, CLIP, position) for s in (source, held))
        assert read_numbers(other.frames) == read_numbers(one.frames)
        assert other.start == pytest.approx(one.start, abs=2e-3)
        assert other.has_audio
        both = np.corrcoef(one.waveform, other.waveform)[0, 1]
        # A start that is off by less than a millisecond turns the phase of a tone.
        assert both > 0.8

    def test_a_file_that_was_cut_off_ends_with_its_last_frame(self, tmp_path: Path) -> None:
        fast = {"movflags": "faststart"}
        source = write_media(tmp_path / "source.mp4", frames=100, container_options=fast)
        source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
        assert probe(source).seconds == 4, "otherwise the header is right"
        held = Held(pack_video(source, 96, 3, 16_000))
        assert probe(held).seconds == pytest.approx(inspect(tmp_path, source.name).seconds, abs=2e-3)
        one, other = (read_window(s, CLIP, 1.0) for s in (source, held))
        assert read_numbers(other.frames) == read_numbers(one.frames)

    def test_large_frames_shrink_and_small_ones_stay(self, tmp_path: Path) -> None:
        source = write_media(tmp_path / "source.mp4", frames=5, size=(96, 160), video="libx264", audio=None)
        for short_side, size in ((48, (48, 80)), (200, (96, 160))):
            info = probe(Held(pack_video(source, short_side, 3, 16_000)))
            assert (info.height, info.width) == size
            assert not info.has_audio
            assert info.codecs == ("mjpeg",)
