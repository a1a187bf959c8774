"""Clips that are parts of a file: their windows are those of a file cut to that part."""

from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_files import FILES, H264, audio_delay, read_numbers, write_media

from avmae.clip import ClipSpec
from avmae.data.augment import AugmentSpec
from avmae.data.dataset import ClipDataset
from avmae.data.decode.decoded import read_decoded
from avmae.data.decode.window import Window, read_window
from avmae.data.sampling import Request
from avmae.data.splits import ClipEntry
from avmae.errors import MediaError

CLIP = ClipSpec(frames=8, size=64)
"""1.28 s."""
FIRST, LAST = 45, 110
"""Frames of the long part: 1.8 to 4.4 s."""


def write_cut(path: Path, first: int, last: int, **options: Any) -> Path:
    """The file that is left of `write_media` when it is cut to frames from `first` up to `last`, numbered from 0."""
    return write_media(path, **(options | {"frames": last - first}))


def agree(part: Window, cut: Window, first: int) -> None:
    """A part's window has the frames of the cut file's, from `first` on, and the audio of their seconds."""
    assert read_numbers(part.frames) == [first + number for number in read_numbers(cut.frames)]
    assert part.start == pytest.approx(first / 25 + cut.start, abs=1e-6)
    assert part.has_audio == cut.has_audio


@pytest.mark.parametrize("name", ["as_in_ucf101.avi", "pcm.avi", "h264.mp4", "open_gop.mp4", "late.mkv", "film.ts"])
@pytest.mark.parametrize(("first", "last"), [(FIRST, LAST), (0, 40), (100, 150)])
def test_windows_of_a_part_are_those_of_a_file_cut_to_it(name: str, first: int, last: int, tmp_path: Path) -> None:
    whole = write_media(tmp_path / name, **(FILES[name] | {"frames": 150}))
    cut = write_cut(tmp_path / f"cut_{name}", first, last, **FILES[name])
    between = (first / 25, last / 25)
    for position in (0.0, 0.31, 1.0):
        part = read_window(whole, CLIP, position, between=between)
        agree(part, read_window(cut, CLIP, position), first)
        assert abs(audio_delay(part.waveform, CLIP.sample_rate, part.start, 0.05)) <= 0.02
        decoded = read_decoded(tmp_path / "decoded", whole, CLIP, position, between=between)
        np.testing.assert_array_equal(
            decoded.frames, read_window(whole, CLIP, position, CLIP.canvas, between=between).frames
        )
        assert astuple(decoded)[2:] == astuple(part)[2:]
    assert len([*(tmp_path / "decoded").iterdir()]) == 1, "parts share their file's copy"


@pytest.mark.parametrize("name", ["as_in_ucf101.avi", "pcm.avi", "h264.mp4", "vp9.webm"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_part_shorter_than_the_window_repeats_as_a_short_file_does(name: str, cached: bool, tmp_path: Path) -> None:
    whole, cut = write_media(tmp_path / name, **FILES[name]), write_cut(tmp_path / f"cut_{name}", 30, 50, **FILES[name])
    between = (1.2, 2.0)
    part = (
        read_decoded(tmp_path / "decoded", whole, CLIP, 0.7, between=between)
        if cached
        else read_window(whole, CLIP, 0.7, between=between)
    )
    agree(part, read_window(cut, CLIP, 0.7, CLIP.canvas), 30)
    period = round(0.8 * CLIP.sample_rate)
    np.testing.assert_array_equal(part.waveform[period:], part.waveform[: part.waveform.size - period])
    assert abs(audio_delay(part.waveform[:period], CLIP.sample_rate, 1.2, 0.05)) <= 0.03


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("share", [1.0, 0.6])
def test_an_end_beyond_the_files_is_the_files(cached: bool, share: float, tmp_path: Path) -> None:
    """Also where the header promises more than there is."""
    path = write_media(tmp_path / "a.mp4", frames=200, container_options={"movflags": "faststart"}, **H264)
    path.write_bytes(path.read_bytes()[: round(share * path.stat().st_size)])

    def read(position: float, *between: float) -> Window:
        if cached:
            return read_decoded(tmp_path / "decoded", path, CLIP, position, between=between)
        return read_window(path, CLIP, position, CLIP.canvas, between=between)

    end = read_window(path, CLIP, 1.0)
    for until in (8.0, 100.0, float("inf")):
        assert read(1.0, 1.0, until).start == pytest.approx(end.start, abs=0.04)
        np.testing.assert_array_equal(read_numbers(read(1.0, 1.0, until).frames), read_numbers(end.frames))
    with pytest.raises(MediaError, match=r"a\.mp4: ends at .* s, before the clip that starts at 9 s"):
        read(0.0, 9.0, 11.0)


def test_training_and_test_windows_of_a_data_set_stay_in_their_clips(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", frames=150, **H264)
    entries = [ClipEntry(path, 0, start=0.4, end=2.4), ClipEntry(path, 1, start=2.8), ClipEntry(path, 2, end=0.48)]
    inside = [set(range(10, 60)), set(range(70, 150)), set(range(12))]
    for number, frames in enumerate(inside):
        clips = ClipDataset(entries, CLIP, True, AugmentSpec())
        seen = [read_numbers(clips[Request(number, (seed,))]["frames"].numpy()) for seed in range(8)]
        assert set().union(*seen) <= frames
        assert len({numbers[0] for numbers in seen}) == 1 if number == 2 else len({n[0] for n in seen}) > 3
        test = ClipDataset(entries, CLIP, segments=3)
        first, _, last = (read_numbers(test[Request(number, segment=s)]["frames"].numpy()) for s in range(3))
        assert first[0] == min(frames)
        assert last[-1] <= max(frames)


def test_clips_of_a_file_that_cannot_be_read_are_told_apart(tmp_path: Path) -> None:
    entries = [ClipEntry(tmp_path / "a.mp4", 0, start=s, end=s + 1.5) for s in (0.0, 12345.675)]
    assert [str(entry) for entry in entries] == [f"{tmp_path}/a.mp4#t=0,1.5", f"{tmp_path}/a.mp4#t=12345.675,12347.175"]
    for number, entry in enumerate(entries):
        (said,) = ClipDataset(entries, CLIP)[Request(number)]["unreadable"]
        assert said.startswith(f"{entry}: no such file")
