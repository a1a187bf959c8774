import dataclasses
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avmae.clip import ClipSpec
from avmae.errors import InputError


def test_the_default_window_is_256_columns_of_10_ms() -> None:
    clip = ClipSpec()
    assert clip.seconds == pytest.approx(2.56)
    assert (clip.samples, clip.spectrogram_frames, clip.canvas) == (40_960, 256, (240, 960))


@given(
    frames=st.integers(1, 64),
    stride=st.integers(1, 16),
    fps=st.sampled_from([12, 15, 23.976, 24, 25, 29.97, 30, 50, 60]),
)
def test_the_spectrogram_is_the_most_whole_patches_that_the_window_holds(frames: int, stride: int, fps: float) -> None:
    columns = Fraction(frames * stride) / Fraction(str(fps)) * 100
    whole = int(columns) // 16 * 16
    if whole == 0:
        with pytest.raises(InputError, match=r"clip: .* too short for one spectrogram patch"):
            ClipSpec(frames=frames, stride=stride, fps=fps)
    else:
        clip = ClipSpec(frames=frames, stride=stride, fps=fps)
        assert clip.spectrogram_frames == whole
        assert clip.samples >= whole * clip.sample_rate // 100


@given(size=st.integers(1, 600))
def test_the_canvas_is_even_and_holds_the_picture(size: int) -> None:
    short, long = ClipSpec(size=size).canvas
    assert size <= short <= long
    assert short % 2 == long % 2 == 0


@pytest.mark.parametrize("canvas", [[240], [0, 320], [320, 240]])
def test_a_canvas_is_a_short_and_a_long_side(canvas: list[int]) -> None:
    assert ClipSpec(canvas=[256, 340]).canvas == (256, 340)
    with pytest.raises(InputError, match=r"clip\.canvas takes a short and a long side"):
        ClipSpec(canvas=canvas)


@pytest.mark.parametrize("key", ["frames", "stride", "fps", "size", "sample_rate", "mel_bins", "mel_std"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_what_must_be_positive_is_named(key: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"^clip\.{key} must be positive, not {value}"):
        ClipSpec(**{key: value})


@pytest.mark.parametrize(
    "wrong", [{"pixel_mean": [0.5]}, {"pixel_std": [0.2, 0.2]}, {"pixel_std": [0.2, 0.0, 0.2]}], ids=str
)
def test_three_numbers_for_three_channels(wrong: dict[str, list[float]]) -> None:
    with pytest.raises(InputError, match=r"clip\.pixel_mean and clip\.pixel_std"):
        ClipSpec(**wrong)


def test_lists_as_they_come_from_files_make_the_same_clip() -> None:
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(ClipSpec()).items()}
    clip = ClipSpec(**plain)
    assert clip == ClipSpec()
    assert hash(clip) == hash(ClipSpec())


def test_an_unknown_filter_bank_is_named() -> None:
    with pytest.raises(InputError, match=r"clip\.filter_bank=bark is unknown; choose mel or kaldi"):
        ClipSpec(filter_bank="bark")
