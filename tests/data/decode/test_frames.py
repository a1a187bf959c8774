"""Frames as players show them."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_files import H264, numbered_frame, on_display, write_media

from avmae.clip import ClipSpec
from avmae.data.decode.window import probe, read_window

CLIP = ClipSpec()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_frames_are_turned_as_players_turn_them(rotation: int, flip: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"video": "libx264", "audio": None, "size": (96, 160), "frames": 40}
    path = write_media(tmp_path / "a.mp4", rotation=rotation, flip=flip, **options)
    # Picture 39 looks different whichever way it is turned or mirrored.
    shown = numbered_frame(39)
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
def test_frames_are_scaled_to_the_canvas(canvas: tuple[int, int], tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", size=(192, 320), audio=None, video="libx264")
    window = read_window(path, CLIP, 0.5, canvas)
    assert window.frames.shape == (CLIP.frames, *canvas, 3)
    expected = numbered_frame(on_display(list(range(100)), 25, window)[0], 192, 320)
    means = [area.mean() for row in np.array_split(window.frames[0], 2) for area in np.array_split(row, 5, axis=1)]
    wanted = [area.mean() for row in np.array_split(expected, 2) for area in np.array_split(row, 5, axis=1)]
    np.testing.assert_allclose(means, wanted, atol=35)
