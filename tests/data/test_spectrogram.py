import pytest
import torch

from avmae.clip import ClipSpec
from avmae.data.spectrogram import LogMel


@pytest.mark.parametrize("clip", [ClipSpec(), ClipSpec(frames=8, mel_bins=64), ClipSpec(fps=30, sample_rate=22_050)])
def test_shape_is_what_the_model_takes(clip: ClipSpec) -> None:
    assert LogMel(clip)(torch.zeros(2, clip.samples)).shape == (2, 1, clip.spectrogram_frames, clip.mel_bins)


def test_a_click_shows_when_it_sounds_and_a_tone_where_it_lies() -> None:
    clip = ClipSpec()
    click = torch.zeros(1, clip.samples)
    click[0, clip.sample_rate] = 1.0
    columns = LogMel(clip)(click)[0, 0].mean(1)
    assert abs(int(columns.argmax()) - 100) <= 1
    time = torch.arange(clip.samples) / clip.sample_rate
    bins = [int(LogMel(clip)(torch.sin(2 * torch.pi * hz * time)[None])[0, 0, 100].argmax()) for hz in (200, 800, 3200)]
    assert bins == sorted(bins)
    assert len(set(bins)) == 3


def test_silence_is_finite_and_every_band_holds_a_frequency() -> None:
    clip = ClipSpec()
    logmel = LogMel(clip)
    assert logmel(torch.zeros(1, clip.samples)).isfinite().all()
    assert (logmel.mel.mel_scale.fb.sum(0) > 0).all()


def test_a_sound_made_from_a_spectrogram_has_that_spectrogram() -> None:
    clip = ClipSpec()
    time = torch.arange(clip.samples) / clip.sample_rate
    rising = 0.3 * torch.sin(2 * torch.pi * (300 + 200 * time) * time)[None]
    logmel = LogMel(clip)
    spectrogram = logmel(rising)
    again = logmel(torch.nn.functional.pad(logmel.invert(spectrogram), (0, clip.samples)))[:, :, : spectrogram.shape[2]]
    loud = spectrogram > 0
    assert loud.float().mean() > 0.01
    # In natural logarithms of power: within a factor of 3 where there is sound, and quiet elsewhere.
    error = (again - spectrogram)[loud].abs() * clip.mel_std
    assert error.median() < 1.1
    assert again[~loud].mean() < spectrogram[loud].mean() - 0.5
