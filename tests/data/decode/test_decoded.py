"""Windows from decoded copies."""

from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from media_files import FILES, H264, audio_delay, write_media

from avmae.clip import ClipSpec
from avmae.data.decode.decoded import read_decoded
from avmae.data.decode.window import read_window
from avmae.errors import InputError, MediaError

CLIP = ClipSpec(size=64)
LONG = ClipSpec(size=64, frames=16, stride=20)


@pytest.mark.parametrize("name", FILES)
def test_a_decoded_copy_gives_the_windows_of_the_file(name: str, tmp_path: Path) -> None:
    path = write_media(tmp_path / name, **FILES[name])
    for clip, positions in ((CLIP, (0.0, 0.37, 1.0)), (LONG, (0.0,))):
        for position in positions:
            expected = read_window(path, clip, position, clip.canvas)
            found = read_decoded(tmp_path / "decoded", path, clip, position)
            np.testing.assert_array_equal(found.frames, expected.frames)
            assert astuple(found)[2:] == astuple(expected)[2:]
            # Not by sample, for the resampler begins elsewhere.
            levels = [w.waveform[: w.waveform.size // 800 * 800].reshape(-1, 800).std(1) for w in (found, expected)]
            np.testing.assert_allclose(*levels, atol=0.05)
            if clip is CLIP:
                delays = [audio_delay(w.waveform, clip.sample_rate, w.start) for w in (found, expected)]
                assert delays[0] == pytest.approx(delays[1], abs=2e-3)
    assert len(list((tmp_path / "decoded").iterdir())) == 1


def test_a_changed_file_and_another_size_are_decoded_anew(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", frames=70, **H264)
    first = read_decoded(tmp_path / "decoded", path, CLIP, 0.0)
    write_media(path, frames=90, **(H264 | {"audio": None}))
    second = read_decoded(tmp_path / "decoded", path, CLIP, 1.0)
    assert (first.has_audio, second.has_audio) == (True, False)
    assert second.start > first.start
    assert read_decoded(tmp_path / "decoded", path, ClipSpec(size=32), 0.0).frames.shape[1] < first.frames.shape[1]


def test_windows_come_from_the_copy_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_media(tmp_path / "a.mp4", frames=70, **H264)
    expected = read_decoded(tmp_path / "decoded", path, CLIP, 0.5)
    monkeypatch.setattr("avmae.data.decode.decoded.opened", None)
    np.testing.assert_array_equal(read_decoded(tmp_path / "decoded", path, CLIP, 0.5).frames, expected.frames)


def test_a_damaged_copy_and_a_folder_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", frames=70, **H264)
    read_decoded(tmp_path / "decoded", path, CLIP, 0.5)
    (copy,) = (tmp_path / "decoded").iterdir()
    copy.write_bytes(copy.read_bytes()[:1000])
    with pytest.raises(MediaError, match=f"{copy.name}.*delete it"):
        read_decoded(tmp_path / "decoded", path, CLIP, 0.5)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"data\.cache=.*file cannot be written"):
        read_decoded(tmp_path / "file", path, CLIP, 0.5)
