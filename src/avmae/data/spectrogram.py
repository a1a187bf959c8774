"""Waveforms to log-mel spectrograms, on the device, for a whole batch."""

import torch
from torch import Tensor, nn
from torchaudio.transforms import GriffinLim, InverseMelScale, MelSpectrogram

from avmae.clip import HOP_SECONDS, ClipSpec

WINDOW_SECONDS = 0.025
FLOOR = 1e-6
"""Power below which the logarithm is cut: about the noise floor of MP3 and AAC."""


class LogMel(nn.Module):
    """Natural logarithm of mel power, normalised; windows of 25 ms every 10 ms, as AudioMAE and CAV-MAE.

    The transform is four times as long as the window, or the lowest of 128 mel bands would hold no frequency at all.
    """

    def __init__(self, clip: ClipSpec) -> None:
        super().__init__()
        window = round(WINDOW_SECONDS * clip.sample_rate)
        self.clip = clip
        self.mel = MelSpectrogram(
            sample_rate=clip.sample_rate,
            n_fft=4 * window,
            win_length=window,
            hop_length=round(HOP_SECONDS * clip.sample_rate),
            n_mels=clip.mel_bins,
            pad_mode="constant",
        )

    def forward(self, waveform: Tensor) -> Tensor:
        """(B, samples) float32 in [-1, 1] to (B, 1, L, F) float32: L spectrogram frames of F mel bins."""
        # Outside autocast: powers of quiet audio underflow in half precision.
        with torch.autocast(waveform.device.type, enabled=False):
            power = self.mel(waveform.float())[..., : self.clip.spectrogram_frames]
            return ((power + FLOOR).log() - self.clip.mel_mean).div(self.clip.mel_std).transpose(1, 2).unsqueeze(1)

    def invert(self, logmel: Tensor) -> Tensor:
        """Audio that has about this spectrogram, phases by Griffin and Lim (1984): (B, 1, L, F) to (B, samples).

        It lasts from the middle of the first spectrogram frame to the middle of the last.
        """
        spectrum = self.mel.spectrogram
        bins = spectrum.n_fft // 2 + 1
        power = (logmel[:, 0].float() * self.clip.mel_std + self.clip.mel_mean).exp().sub(FLOOR).clamp(min=0)
        linear = InverseMelScale(bins, self.clip.mel_bins, self.clip.sample_rate).to(logmel.device)(
            power.transpose(1, 2)
        )
        vocoder = GriffinLim(
            spectrum.n_fft,
            win_length=spectrum.win_length,
            hop_length=spectrum.hop_length,
            length=(self.clip.spectrogram_frames - 1) * spectrum.hop_length,
            rand_init=False,
        )
        return vocoder.to(logmel.device)(linear)
