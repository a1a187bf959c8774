"""Waveforms to log-mel spectrograms, on the device, for a whole batch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.compliance.kaldi import get_mel_banks
from torchaudio.transforms import GriffinLim, MelSpectrogram

from avmae.clip import HOP_SECONDS, ClipSpec

WINDOW_SECONDS = 0.025
FLOOR = 1e-6
"""Power below which the logarithm is cut: about the noise floor of MP3 and AAC."""
KALDI_FLOOR = torch.finfo(torch.float32).eps  # Kaldi takes the logarithm of no less.
PREEMPHASIS = 0.97  # Each sample less this share of the one before, as Kaldi does by default.


class KaldiMel(nn.Module):
    """The power whose logarithm ``torchaudio.compliance.kaldi.fbank`` is, for a whole batch, with AudioMAE's settings.

    Windows of 25 ms by Hann every 10 ms, each without its mean and with pre-emphasis, and bands from 20 Hz (AudioMAE's
    ``dataset.py``). One of the lowest of 128 bands holds no frequency at 16 kHz and always has the value of the floor.
    Where AudioMAE leaves out windows that reach beyond the end, they lie here around the middle of each 10 ms, the
    audio mirrored at both ends (``snip_edges=False``), so that a clip has as many as with the other bank.
    """

    window: Tensor
    bands: Tensor

    def __init__(self, clip: ClipSpec) -> None:
        super().__init__()
        self.win_length = int(WINDOW_SECONDS * clip.sample_rate)
        self.hop_length = int(HOP_SECONDS * clip.sample_rate)
        self.n_fft = 1 << (self.win_length - 1).bit_length()
        bands, _ = get_mel_banks(clip.mel_bins, self.n_fft, clip.sample_rate, 20.0, 0.0, 100.0, -500.0, 1.0)
        self.register_buffer("bands", F.pad(bands, (0, 1)), persistent=False)
        self.register_buffer("window", torch.hann_window(self.win_length, periodic=False), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """(B, samples) float32 to (B, F, L) float32."""
        before = self.win_length // 2 - self.hop_length // 2
        first, last = waveform[:, :before], waveform[:, -self.win_length :]
        windows = torch.cat([first.flip(1), waveform, last.flip(1)], 1).unfold(1, self.win_length, self.hop_length)
        windows = windows - windows.mean(2, keepdim=True)
        windows = windows - PREEMPHASIS * torch.cat([windows[..., :1], windows[..., :-1]], 2)
        power = squared(torch.fft.rfft(windows * self.window, self.n_fft))
        return self.bands @ power.transpose(1, 2)


def squared(spectrum: Tensor) -> Tensor:
    """Power of complex amplitudes; their roots, as `abs` takes them, cost a CPU as much as the transform."""
    return spectrum.real.square().add_(spectrum.imag.square())


class Mel(MelSpectrogram):
    """torchaudio's, of complex spectra (`power=None`)."""

    def forward(self, waveform: Tensor) -> Tensor:
        """(B, samples) float32 to (B, F, L) float32."""
        return self.mel_scale(squared(self.spectrogram(waveform)))


class LogMel(nn.Module):
    """Natural logarithm of mel power, normalised; windows of 25 ms every 10 ms, as AudioMAE and CAV-MAE.

    With `clip.filter_bank=mel` the transform is four times as long as the window, or the lowest of 128 mel bands would
    hold no frequency at all. With `kaldi` it is what AudioMAE was trained on.
    """

    mel: KaldiMel | Mel

    def __init__(self, clip: ClipSpec) -> None:
        super().__init__()
        self.clip = clip
        window = round(WINDOW_SECONDS * clip.sample_rate)
        if clip.filter_bank == "kaldi":
            self.mel = KaldiMel(clip)
        else:
            how = {"n_fft": 4 * window, "win_length": window, "hop_length": round(HOP_SECONDS * clip.sample_rate)}
            self.mel = Mel(clip.sample_rate, n_mels=clip.mel_bins, pad_mode="constant", power=None, **how)

    def forward(self, waveform: Tensor) -> Tensor:
        """(B, samples) float32 in [-1, 1] to (B, 1, L, F) float32: L spectrogram frames of F mel bins."""
        # Outside autocast: powers of quiet audio underflow in half precision.
        with torch.autocast(waveform.device.type, enabled=False):
            power = self.mel(waveform.float())[..., : self.clip.spectrogram_frames]
            floored = power.clamp(min=KALDI_FLOOR) if isinstance(self.mel, KaldiMel) else power + FLOOR
            return (floored.log() - self.clip.mel_mean).div(self.clip.mel_std).transpose(1, 2).unsqueeze(1)

    def invert(self, logmel: Tensor) -> Tensor:
        """Audio that has about this spectrogram, phases by Griffin and Lim (1984): (B, 1, L, F) to (B, samples).

        It lasts from the middle of the first spectrogram frame to the middle of the last.
        """
        mel, response = self.mel, torch.ones(1)
        if isinstance(mel, KaldiMel):
            spectrum, bands, floor = mel, mel.bands, KALDI_FLOOR
            response = torch.fft.rfft(torch.tensor([1.0, -PREEMPHASIS]), mel.n_fft).abs().square()
        else:
            spectrum, bands, floor = mel.spectrogram, mel.mel_scale.fb.T, FLOOR
        level = logmel[:, 0].float() * self.clip.mel_std + self.clip.mel_mean
        power = level.exp().sub(floor).clamp(min=0).transpose(1, 2)
        # Of all spectra that have this power, the one of least squares, without the emphasis.
        linear = (torch.linalg.pinv(bands).to(power) @ power).clamp(min=0) / response.to(power)[:, None]
        vocoder = GriffinLim(
            spectrum.n_fft,
            win_length=spectrum.win_length,
            hop_length=spectrum.hop_length,
            length=(self.clip.spectrogram_frames - 1) * spectrum.hop_length,
            rand_init=False,
        )
        return vocoder.to(logmel.device)(linear)
