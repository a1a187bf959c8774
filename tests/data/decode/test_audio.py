"""The audio of a window."""

from pathlib import Path

import av
import numpy as np
import pytest
from media_files import H264, audio_delay, write_media

from avmae.clip import ClipSpec
from avmae.data.decode.encode import write_video
from avmae.data.decode.window import probe, read_window

CLIP = ClipSpec()


def test_no_audio_track(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.avi", audio=None)
    window = read_window(path, CLIP, 0.5)
    assert not window.has_audio
    assert not window.waveform.any()
    assert not probe(path).has_audio


def test_audio_is_left_alone_on_request(tmp_path: Path) -> None:
    window = read_window(write_media(tmp_path / "a.mp4", **H264), CLIP, 0.5, audio=False)
    assert not window.has_audio
    assert not window.waveform.any()


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_audio_that_covers_a_part_is_silent_elsewhere(name: str, tmp_path: Path) -> None:
    path = write_media(tmp_path / name, audible=(1.0, 1.9), frames=150, **H264)
    first = read_window(path, CLIP, 0)
    rate = CLIP.sample_rate
    assert first.has_audio
    assert np.abs(first.waveform[: round(0.95 * rate)]).max() < 0.01
    assert np.abs(first.waveform[round(2.0 * rate) :]).max() < 0.01
    heard = first.waveform[round(1.05 * rate) : round(1.85 * rate)]
    assert abs(audio_delay(heard, rate, 1.05)) <= 0.02
    last = read_window(path, CLIP, 1)
    assert not last.has_audio
    assert not last.waveform.any()


def test_loud_audio_is_clamped(tmp_path: Path) -> None:
    wave = np.sign(np.sin(np.arange(64_000) * 0.2)).astype(np.float32)
    write_video(tmp_path / "a.mp4", np.zeros((100, 32, 32, 3), np.uint8), 25, wave, 16_000)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert max(np.abs(frame.to_ndarray()).max() for frame in container.decode(audio=0)) > 1
    assert np.abs(read_window(tmp_path / "a.mp4", CLIP, 0).waveform).max() == 1


def test_the_audio_is_that_of_a_track_that_can_be_decoded(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", **H264)
    heard = read_window(path, CLIP, 0.5)
    both = tmp_path / "both.mp4"
    with av.open(str(path)) as source, av.open(str(both), "w") as target:
        tracks = {s.index: [target.add_stream_from_template(s)] for s in source.streams}
        audio = source.streams.audio[0]
        tracks[audio.index].append(target.add_stream_from_template(audio))
        for packet in source.demux():
            if packet.dts is not None:
                for track in tracks[packet.stream.index]:
                    packet.stream = track
                    target.mux(packet)
    for file in (both, path):
        # One track becomes of a codec that FFmpeg does not know, as that of phones' spatial audio.
        file.write_bytes(file.read_bytes().replace(b"mp4a", b"apac", 1).replace(b"esds", b"free", 1))
    assert probe(both).codecs == ("h264", "aac")
    window = read_window(both, CLIP, 0.5)
    assert window.has_audio
    assert np.corrcoef(window.waveform, heard.waveform)[0, 1] > 0.99
    assert not probe(path).has_audio
    assert not read_window(path, CLIP, 0.5).has_audio
