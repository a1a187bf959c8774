import dataclasses
from pathlib import Path

import pytest
import torch
import yaml
from torchaudio.compliance.kaldi import fbank

from avmae.clip import ClipSpec
from avmae.data.spectrogram import LogMel

both_banks = pytest.mark.parametrize("filter_bank", ["mel", "kaldi"])


@both_banks
@pytest.mark.parametrize("clip", [ClipSpec(), ClipSpec(frames=8, mel_bins=64), ClipSpec(fps=30, sample_rate=22_050)])
def test_shape_is_what_the_model_takes(clip: ClipSpec, filter_bank: str) -> None:
    clip = dataclasses.replace(clip, filter_bank=filter_bank)
    assert LogMel(clip)(torch.zeros(2, clip.samples)).shape == (2, 1, clip.spectrogram_frames, clip.mel_bins)


@both_banks
def test_a_click_shows_when_it_sounds_and_a_tone_where_it_lies(filter_bank: str) -> None:
    clip = ClipSpec(filter_bank=filter_bank)
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


# The mean and the standard deviation put loud parts above 0 with either bank.
@pytest.mark.parametrize("clip", [ClipSpec(), ClipSpec(filter_bank="kaldi", mel_mean=-4.27, mel_std=4.57)], ids=str)
def test_a_audio_made_from_a_spectrogram_has_that_spectrogram(clip: ClipSpec) -> None:
    time = torch.arange(clip.samples) / clip.sample_rate
    rising = 0.3 * torch.sin(2 * torch.pi * (300 + 200 * time) * time)[None]
    logmel = LogMel(clip)
    spectrogram = logmel(rising)
    again = logmel(torch.nn.functional.pad(logmel.invert(spectrogram), (0, clip.samples)))[:, :, : spectrogram.shape[2]]
    loud = spectrogram > 0
    assert loud.float().mean() > 0.01
    assert logmel.invert(spectrogram).square().mean() == pytest.approx(rising.square().mean().item(), rel=0.1)
    # In natural logarithms of power: within a factor of 3 where there is audio, and quiet elsewhere.
    error = (again - spectrogram)[loud].abs() * clip.mel_std
    assert error.median() < 1.1
    assert again[~loud].mean() < spectrogram[loud].mean() - 0.5


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100])
def test_kaldis_filter_bank_is_the_one_of_audiomae(rate: int) -> None:
    clip = ClipSpec(frames=8, sample_rate=rate, filter_bank="kaldi", mel_mean=-4.0, mel_std=9.0)
    generator = torch.Generator().manual_seed(0)
    # Loud, quiet and silent; with a constant part, which AudioMAE takes away.
    loudness = torch.tensor([[0.3], [0.003], [0.0]])
    waveform = loudness * torch.randn(3, clip.samples, generator=generator) + 0.02
    expected = [
        fbank(
            wave[None] - wave.mean(),
            htk_compat=True,
            sample_frequency=rate,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=clip.mel_bins,
            dither=0.0,
            frame_shift=10,
            snip_edges=False,
        )[: clip.spectrogram_frames]
        for wave in waveform
    ]
    found = LogMel(clip)(waveform)[:, 0] * clip.mel_std + clip.mel_mean
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=2e-3)


def test_the_clip_of_audiomae_has_its_normalisation() -> None:
    """(x + 4.2677393) / (2 * 4.5689974), with which its dataset.py prepares AudioSet."""
    path = Path(__file__).parents[2] / "conf" / "clip" / "audiomae.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert (values["filter_bank"], values["mel_mean"]) == ("kaldi", -4.2677393)
    assert values["mel_std"] == pytest.approx(2 * 4.5689974)
