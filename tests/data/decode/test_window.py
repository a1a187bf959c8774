"""Windows are the frames and the audio of the same seconds, whatever the file."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media_files import FILES, H264, audio_delay, on_display, read_number, read_numbers, write_media

from avmae.clip import ClipSpec
from avmae.data.decode.window import Window, probe, read_window
from avmae.errors import InputError, MediaError

CLIP = ClipSpec()
POSITIONS = (0.0, 0.013, 0.21, 0.5, 0.77, 1.0)


def check(path: Path, options: dict[str, Any], position: float) -> Window:
    rate = options.get("rate", 25)
    ticks = list(options.get("ticks", range(options.get("frames", 100))))
    window = read_window(path, CLIP, position)
    duration = float((ticks[-1] + 1) / rate)
    # Headers are a frame or two out where B-frames are reordered; a program stream has none, and its end is a guess.
    slack = 0.4 if path.suffix == ".mpg" else 0.1
    assert window.start == pytest.approx(position * (duration - CLIP.seconds), abs=slack)
    assert read_numbers(window.frames) == on_display(ticks, rate, window)
    assert window.waveform.shape == (CLIP.samples,)
    assert window.waveform.dtype == np.float32
    return window


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.mark.parametrize("name", FILES)
def test_frames_and_audio_are_those_of_the_window(name: str, folder: Path) -> None:
    path = write_media(folder / name, **FILES[name])
    for position in POSITIONS:
        window = check(path, FILES[name], position)
        assert window.has_audio
        assert abs(audio_delay(window.waveform, CLIP.sample_rate, window.start)) <= 0.02
        # Down-mixing keeps the level; AAC overshoots where the tone sets in.
        assert 0.4 < np.quantile(np.abs(window.waveform), 0.99) < 0.55
    info = probe(path)
    assert info.has_audio
    assert (info.height, info.width) == FILES[name].get("size", (96, 160))


@pytest.mark.parametrize(
    ("name", "options"), [("a.avi", {"options": {"bf": "2"}}), ("a.mp4", H264), ("a.webm", FILES["vp9.webm"])]
)
def test_a_file_shorter_than_the_window_repeats_with_its_audio(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    path = write_media(tmp_path / name, frames=20, **options)
    window = read_window(path, CLIP, 0.7)
    assert window.start == 0
    assert read_numbers(window.frames) == on_display(list(range(20)), 25, window)
    period = round(0.8 * CLIP.sample_rate)
    np.testing.assert_array_equal(window.waveform[:period], window.waveform[period : 2 * period])
    assert abs(audio_delay(window.waveform[:period], CLIP.sample_rate, 0)) <= 0.03


def test_a_single_frame_is_repeated(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", frames=1, video="libx264", audio=None)
    assert read_numbers(read_window(path, CLIP, 0.5).frames) == [0] * CLIP.frames


@pytest.mark.parametrize("name", ["long.mkv", "long.mp4"])
def test_audio_longer_than_the_frames_does_not_move_the_window(name: str, tmp_path: Path) -> None:
    path = write_media(tmp_path / name, audible=(0.0, 9.0), **H264)
    for position in (0.5, 1.0):
        window = check(path, {}, position)
        assert window.start == pytest.approx(position * 1.44, abs=0.01)
        assert abs(audio_delay(window.waveform, CLIP.sample_rate, window.start)) <= 0.02


@pytest.mark.parametrize("position", [-0.1, 1.01, float("nan")])
def test_position_outside_the_file_is_refused(position: float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="position"):
        read_window(tmp_path / "a.avi", CLIP, position)


@pytest.mark.parametrize("share", [0.35, 0.8])
@pytest.mark.parametrize("name", ["a.avi", "a.mp4", "a.mkv", "a.ts"])
def test_a_file_that_ends_early_is_read_as_long_as_it_is(name: str, share: float, tmp_path: Path) -> None:
    options = {"options": {"bf": "2"}} if name == "a.avi" else H264
    path = write_media(tmp_path / name, frames=200, container_options={"movflags": "faststart"}, **options)
    data = path.read_bytes()
    path.write_bytes(data[: round(share * len(data))])
    left = numbers_left(path)
    window = read_window(path, CLIP, 1)
    seconds = (left[-1] + 1) / 25
    if seconds >= CLIP.seconds:
        # By the share of its data that is left, FFmpeg guesses how long an AVI file lasts.
        assert window.start == pytest.approx(seconds - CLIP.seconds, abs=0.4 if name == "a.avi" else 0.1)
        times = window.start + np.arange(CLIP.frames) * 0.16
    else:
        assert window.start == 0
        times = np.arange(CLIP.frames) * 0.16 % seconds
    # The cut may take a frame of the last few and leave the next.
    wanted = [max(number for number in left if number <= int((time + 1e-3) * 25)) for time in times]
    assert read_numbers(window.frames)[:10] == wanted[:10]
    assert max(read_numbers(window.frames)) <= left[-1]


def numbers_left(path: Path) -> list[int]:
    numbers = []
    with av.open(str(path)) as container, suppress(av.FFmpegError, AssertionError):
        for frame in container.decode(video=0):
            numbers.append(read_number(frame.to_ndarray(format="rgb24")))
    return numbers


@pytest.mark.parametrize("name", ["as_in_ucf101.avi", "h264.mp4", "vp9.webm", "film.ts"])
def test_damaged_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    path = write_media(tmp_path / name, **FILES[name])
    whole = path.read_bytes()
    rng = np.random.default_rng(list(name.encode()))
    clip = ClipSpec(frames=4)
    refused: list[str] = []
    for attempt in range(24):
        data = bytearray(whole)
        begin, length = int(rng.integers(len(data))), int(rng.integers(1, len(data) // 2))
        if attempt % 4 == 0:
            del data[begin:]
        elif attempt % 4 == 1:
            for at in rng.integers(len(data), size=20):
                data[at] ^= 1 << int(rng.integers(8))
        elif attempt % 4 == 2:
            data[begin : begin + length] = bytes(len(data[begin : begin + length]))
        else:
            data[rng.integers(2_000)] = rng.integers(256)
        path.write_bytes(data)
        try:
            window = read_window(path, clip, float(rng.random()), (48, 80))
        except MediaError as error:
            refused.append(str(error))
            continue
        assert window.frames.shape == (4, 48, 80, 3)
        assert window.waveform.shape == (clip.samples,)
        assert np.abs(window.waveform).max() <= 1
        assert window.has_audio or not window.waveform.any()
    assert len(refused) < 24
    assert all(message.startswith(f"{path}: ") for message in refused)


def test_a_broken_audio_track_costs_no_frames(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", **H264)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        for packet in container.demux(audio=0):
            if packet.pos is not None and packet.size:
                data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)
    window = check(path, {}, 0.4)
    assert not window.has_audio
    assert not window.waveform.any()
