import ctypes
import gc
import platform
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media_files import numbered_picture, read_number, read_numbers, sound_delay, tone, write_media

from avmae.clip import ClipSpec
from avmae.data.decode.encode import write_video
from avmae.data.decode.window import Window, probe, read_window
from avmae.errors import InputError, MediaError

CLIP = ClipSpec()
POSITIONS = (0.0, 0.013, 0.21, 0.5, 0.77, 1.0)
H264 = {"video": "libx264", "audio": "aac", "options": {"bf": "3"}}

FILES: dict[str, dict[str, Any]] = {
    "as_in_ucf101.avi": {"options": {"bf": "2", "g": "60"}},
    "ntsc.avi": {"options": {"bf": "2"}, "rate": Fraction(30_000, 1001), "frames": 130},
    "h264.avi": H264,
    "pcm.avi": {"video": "mjpeg", "pixels": "yuvj420p", "audio": "pcm_s16le", "layout": "stereo"},
    "h264.mp4": H264,
    "open_gop.mp4": H264 | {"options": {"bf": "3", "x264-params": "open-gop=1:keyint=15"}},
    "hevc.mp4": H264 | {"video": "libx265", "options": {"x265-params": "keyint=15:log-level=none"}},
    "slow.mp4": H264 | {"rate": 12, "frames": 60, "sample_rate": 48_000},
    "fast.mp4": H264 | {"rate": Fraction(60_000, 1001), "frames": 240},
    "telephone.mp4": H264 | {"sample_rate": 8_000},
    "variable.mp4": H264
    | {"rate": 50, "ticks": [*range(0, 60, 3), *range(60, 140), *range(140, 240, 5)], "frames": 120},
    "late.mp4": H264 | {"start": 2.0},
    "surround.mkv": H264 | {"audio": "ac3", "layout": "5.1", "sample_rate": 48_000},
    "late.mkv": H264 | {"start": 3.0, "audio": "flac", "layout": "5.1"},
    "film.ts": H264 | {"start": 5.0},
    "program.mpg": {"video": "mpeg2video", "audio": "mp2", "options": {"bf": "2"}},
    "vp9.webm": {
        "video": "libvpx-vp9",
        "audio": "libopus",
        "sample_rate": 48_000,
        "options": {"deadline": "realtime", "cpu-used": "8"},
    },
    "odd.mkv": {"video": "ffv1", "audio": "pcm_s24le", "size": (97, 161), "pixels": "yuv444p"},
}


def on_display(ticks: list[int], rate: Fraction | int, window: Window, clip: ClipSpec = CLIP) -> list[int]:
    """Numbers of the pictures that a player shows at the window's times."""
    begins = np.array([float(tick / Fraction(rate)) for tick in ticks])
    period = float((ticks[-1] + 1) / Fraction(rate))
    times = window.start + np.arange(clip.frames) * clip.stride / clip.fps
    return [int(np.searchsorted(begins, (time + 1e-3) % period, side="right")) - 1 for time in times]


def check(path: Path, options: dict[str, Any], position: float) -> Window:
    rate = options.get("rate", 25)
    ticks = list(options.get("ticks", range(options.get("frames", 100))))
    window = read_window(path, CLIP, position)
    duration = float((ticks[-1] + 1) / rate)
    # Headers are a picture or two out where B-frames are reordered; a program stream has none, and its end is a guess.
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
def test_pictures_and_sound_are_those_of_the_window(name: str, folder: Path) -> None:
    path = write_media(folder / name, **FILES[name])
    for position in POSITIONS:
        window = check(path, FILES[name], position)
        assert window.has_audio
        assert abs(sound_delay(window.waveform, CLIP.sample_rate, window.start)) <= 0.02
        # Down-mixing keeps the level; AAC overshoots where the tone sets in.
        assert 0.4 < np.quantile(np.abs(window.waveform), 0.99) < 0.55
    info = probe(path)
    assert info.has_audio
    assert (info.height, info.width) == FILES[name].get("size", (96, 160))


@pytest.mark.parametrize(
    ("name", "options"), [("a.avi", {"options": {"bf": "2"}}), ("a.mp4", H264), ("a.webm", FILES["vp9.webm"])]
)
def test_a_file_shorter_than_the_window_repeats_with_its_sound(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    path = write_media(tmp_path / name, frames=20, **options)
    window = read_window(path, CLIP, 0.7)
    assert window.start == 0
    assert read_numbers(window.frames) == on_display(list(range(20)), 25, window)
    period = round(0.8 * CLIP.sample_rate)
    np.testing.assert_array_equal(window.waveform[:period], window.waveform[period : 2 * period])
    assert abs(sound_delay(window.waveform[:period], CLIP.sample_rate, 0)) <= 0.03


def test_a_single_picture_is_repeated(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", frames=1, video="libx264", audio=None)
    assert read_numbers(read_window(path, CLIP, 0.5).frames) == [0] * CLIP.frames


def test_no_sound_track(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.avi", audio=None)
    window = read_window(path, CLIP, 0.5)
    assert not window.has_audio
    assert not window.waveform.any()
    assert not probe(path).has_audio


def test_sound_is_left_alone_on_request(tmp_path: Path) -> None:
    window = read_window(write_media(tmp_path / "a.mp4", **H264), CLIP, 0.5, audio=False)
    assert not window.has_audio
    assert not window.waveform.any()


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_sound_that_covers_a_part_is_silent_elsewhere(name: str, tmp_path: Path) -> None:
    path = write_media(tmp_path / name, sound=(1.0, 1.9), frames=150, **H264)
    first = read_window(path, CLIP, 0)
    rate = CLIP.sample_rate
    assert first.has_audio
    assert np.abs(first.waveform[: round(0.95 * rate)]).max() < 0.01
    assert np.abs(first.waveform[round(2.0 * rate) :]).max() < 0.01
    heard = first.waveform[round(1.05 * rate) : round(1.85 * rate)]
    assert abs(sound_delay(heard, rate, 1.05)) <= 0.02
    last = read_window(path, CLIP, 1)
    assert not last.has_audio
    assert not last.waveform.any()


@pytest.mark.parametrize("name", ["long.mkv", "long.mp4"])
def test_sound_longer_than_the_pictures_does_not_move_the_window(name: str, tmp_path: Path) -> None:
    path = write_media(tmp_path / name, sound=(0.0, 9.0), **H264)
    for position in (0.5, 1.0):
        window = check(path, {}, position)
        assert window.start == pytest.approx(position * 1.44, abs=0.01)
        assert abs(sound_delay(window.waveform, CLIP.sample_rate, window.start)) <= 0.02


def test_loud_sound_is_clamped(tmp_path: Path) -> None:
    wave = np.sign(np.sin(np.arange(64_000) * 0.2)).astype(np.float32)
    write_video(tmp_path / "a.mp4", np.zeros((100, 32, 32, 3), np.uint8), 25, wave, 16_000)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert max(np.abs(frame.to_ndarray()).max() for frame in container.decode(audio=0)) > 1
    assert np.abs(read_window(tmp_path / "a.mp4", CLIP, 0).waveform).max() == 1


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_pictures_are_turned_as_players_turn_them(rotation: int, flip: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"video": "libx264", "audio": None, "size": (96, 160), "frames": 40}
    path = write_media(tmp_path / "a.mp4", rotation=rotation, flip=flip, **options)
    # Picture 39 looks different whichever way it is turned or mirrored.
    shown = numbered_picture(39)
    expected = np.rot90(shown, rotation // 90)
    if flip:
        expected = expected[:, ::-1]
    window = read_window(path, ClipSpec(frames=40, stride=1), 0)
    assert window.frames.shape[1:] == expected.shape
    assert np.abs(window.frames[39].astype(int) - expected).mean() < 8
    assert window.aspect == pytest.approx(expected.shape[1] / expected.shape[0])
    assert (probe(path).height, probe(path).width) == expected.shape[:2]
    scaled = read_window(path, CLIP, 0, (60, 100))
    assert sorted(scaled.frames.shape[1:3]) == [60, 100]
    assert (scaled.frames.shape[1] > scaled.frames.shape[2]) == (window.aspect < 1)
    assert scaled.aspect == window.aspect


def test_aspect_accounts_for_pixels_that_are_not_square(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", frames=5, shape=Fraction(16, 15), **H264)
    assert read_window(path, CLIP, 0).aspect == pytest.approx(160 / 96 * 16 / 15)


@pytest.mark.parametrize("canvas", [(240, 320), (33, 47), (16, 24)])
def test_pictures_are_scaled_to_the_canvas(canvas: tuple[int, int], tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", size=(192, 320), audio=None, video="libx264")
    window = read_window(path, CLIP, 0.5, canvas)
    assert window.frames.shape == (CLIP.frames, *canvas, 3)
    expected = numbered_picture(on_display(list(range(100)), 25, window)[0], 192, 320)
    means = [area.mean() for row in np.array_split(window.frames[0], 2) for area in np.array_split(row, 5, axis=1)]
    wanted = [area.mean() for row in np.array_split(expected, 2) for area in np.array_split(row, 5, axis=1)]
    np.testing.assert_allclose(means, wanted, atol=35)


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
    assert abs(sound_delay(window.waveform, 16_000, 0)) < 0.005
    write_video(path, frames, 6.25, None, 16_000)
    assert not probe(path).has_audio


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


@pytest.mark.parametrize("position", [-0.1, 1.01, float("nan")])
def test_position_outside_the_file_is_refused(position: float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="position"):
        read_window(tmp_path / "a.avi", CLIP, position)


def test_files_without_pictures_are_named_with_the_reason(tmp_path: Path) -> None:
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
    # The cut may take a picture of the last few and leave the next.
    wanted = [max(number for number in left if number <= int((time + 1e-3) * 25)) for time in times]
    assert read_numbers(window.frames)[:10] == wanted[:10]
    assert max(read_numbers(window.frames)) <= left[-1]


def numbers_left(path: Path) -> list[int]:
    numbers = []
    with av.open(str(path)) as container, suppress(av.FFmpegError, AssertionError):
        for frame in container.decode(video=0):
            numbers.append(read_number(frame.to_ndarray(format="rgb24")))
    return numbers


def test_a_broken_sound_track_costs_no_pictures(tmp_path: Path) -> None:
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


def test_the_sound_is_that_of_a_track_that_can_be_decoded(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", **H264)
    heard = read_window(path, CLIP, 0.5)
    both = tmp_path / "both.mp4"
    with av.open(str(path)) as source, av.open(str(both), "w") as target:
        tracks = {s.index: [target.add_stream_from_template(s)] for s in source.streams}
        sound = source.streams.audio[0]
        tracks[sound.index].append(target.add_stream_from_template(sound))
        for packet in source.demux():
            if packet.dts is not None:
                for track in tracks[packet.stream.index]:
                    packet.stream = track
                    target.mux(packet)
    for file in (both, path):
        # One track becomes of a codec that FFmpeg does not know, as that of phones' spatial sound.
        file.write_bytes(file.read_bytes().replace(b"mp4a", b"apac", 1).replace(b"esds", b"free", 1))
    assert probe(both).codecs == ("h264", "aac")
    window = read_window(both, CLIP, 0.5)
    assert window.has_audio
    assert np.corrcoef(window.waveform, heard.waveform)[0, 1] > 0.99
    assert not probe(path).has_audio
    assert not read_window(path, CLIP, 0.5).has_audio


def test_metadata_that_are_not_utf8_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "AAAA"
        stream: Any = container.add_stream("mpeg4", 25)
        stream.height, stream.width, stream.pix_fmt = 96, 160, "yuv420p"
        container.mux([*stream.encode(av.VideoFrame.from_ndarray(numbered_picture(7))), *stream.encode(None)])
    path.write_bytes(path.read_bytes().replace(b"AAAA", b"\xe4\xff\xfe\xe9"))
    with pytest.raises(UnicodeDecodeError):
        av.open(str(path))
    assert read_numbers(read_window(path, CLIP, 0).frames) == [7] * CLIP.frames


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
