"""One window as it is, as models see it, and as they reconstruct it: pictures, sounds and figures of merit."""

import wave
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from avmae.clip import ClipSpec
from avmae.data.decode.encode import write_video
from avmae.data.decode.window import Window
from avmae.data.read import window_batch
from avmae.data.spectrogram import LogMel
from avmae.models.autoencoder import MaskedAutoencoder
from avmae.viewing.inference import VIEWS, picture_figures, reconstruct_window
from avmae.viewing.pictures import ROW, Row, contact_sheet, error_picture, pixels, side_by_side, spectrogram_picture

COLUMNS = 8
NOTE = "true patch statistics: each hidden patch's own mean and deviation are given, as in the papers' figures"


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; everything by the label under which it is shown.

    Args:
        clip: shape of the window.
        waveform: (samples,) float32 of the window; None without sound.
        videos: (T, H, W, 3) uint8 each; the original, what the models saw, then what they made of it.
        errors: (T, H, W, 3) uint8 of each reconstruction.
        sounds: (1, 1, L, F) float32 log-mel each, NaN where hidden; the original, `masked`, reconstructions; empty
            without sound.
        figures: by system, over hidden patches alone: `video/masked_mse` and `audio/masked_mse` in the units of the
            target (None without sound), PSNR in dB and SSIM of pictures in [0, 1].
        note: what must be said of the pictures.
    """

    clip: ClipSpec
    waveform: np.ndarray | None
    videos: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]
    sounds: dict[str, Tensor]
    figures: dict[str, dict[str, float | None]]
    note: str

    def sheet(self, title: str) -> Image.Image:
        """Frames, errors and spectrograms on one sheet."""
        columns = np.unique(np.linspace(0, self.clip.frames - 1, COLUMNS).round().astype(int))
        rows = []
        for label, frames in self.videos.items():
            rows.append(Row(label, list(frames[columns])))
            if label in self.errors:
                rows.append(Row("error, brightest at 50%", list(self.errors[label][columns])))
        if len(self.sounds) > 1:
            low, high = (np.quantile(self.sounds["original"].numpy(), q) for q in (0.02, 0.998))
            height = max(ROW, self.clip.size)
            shown = [spectrogram_picture(s[0, 0].numpy(), low, high, height) for s in self.sounds.values()]
            rows.append(Row("sound, in the order above", shown))
        return contact_sheet(title, rows, self.note)

    @cached_property
    def audible(self) -> dict[str, Tensor]:
        """Sounds by label, (samples,) float32 in [-1, 1], all but the masked one.

        The original goes through the same way back from its spectrogram, so that what one hears differ by is the
        model's.
        """
        logmel = LogMel(self.clip)
        return {
            label: logmel.invert(sound)[0].clamp(-1, 1) for label, sound in self.sounds.items() if label != "masked"
        }

    def write(self, folder: Path, title: str) -> dict[str, Path]:
        """Write `reconstruction.mp4` with the window's sound, `reconstruction.png`, and a WAV for each sound.

        Returns:
            The sounds' files by label.
        """
        self.sheet(title).save(folder / "reconstruction.png")
        rate, video = self.clip.fps / self.clip.stride, side_by_side(self.videos)
        write_video(folder / "reconstruction.mp4", video, rate, self.waveform, self.clip.sample_rate)
        files = {}
        for label, waveform in self.audible.items():
            files[label] = folder / f"{label.replace(', ', '_').replace(' ', '_')}.wav"
            write_wave(files[label], waveform, self.clip.sample_rate)
        return files


def compare(systems: Mapping[str, MaskedAutoencoder], window: Window, seed: int) -> Comparison:
    """Reconstruct one window, the same share of it hidden, by every system.

    The mask is the same for systems with the same patches; what others see is shown besides.

    Args:
        systems: by label, in evaluation mode and all of the same clip shape, on any device.
        window: its centre square is shown.
        seed: of the masks.
    """
    first = next(iter(systems.values()))
    clip = first.clip
    batch = window_batch(window, clip)
    original = pixels(batch["video"][0].numpy(), clip.pixel_mean, clip.pixel_std)
    videos, errors, figures = {"original": original}, {}, {}
    sounds = {"original": batch["audio"]} if window.has_audio else {}
    patterns: list[Tensor] = []

    for system, model in systems.items():
        found: dict[str, float | None] = {}
        result = reconstruct_window(model, batch, seed)
        masked, hidden = result.masked, result.masked["video"].isnan()
        for name, loss in result.losses.items():
            found[f"{name}/masked_mse"] = loss if name == "video" or window.has_audio else None
        if "audio" in masked and window.has_audio:
            sounds.setdefault("masked", masked["audio"])
        if not any(torch.equal(hidden, other) for other in patterns):
            share = f"masked, {float(hidden.float().mean()):.0%} hidden"
            label = f"{share} from {system}" if patterns else share
            videos[label] = pixels(masked["video"][0].numpy(), clip.pixel_mean, clip.pixel_std)
            patterns.append(hidden)
        for view, whole in result.whole.items():
            note = f", {VIEWS[view]}" if model.normalize_target else ""
            label = f"{system}{note}" if len(systems) > 1 else VIEWS[view] if note else "reconstructed"
            videos[label] = pixels(whole["video"][0].numpy(), clip.pixel_mean, clip.pixel_std)
            errors[label] = error_picture(videos[label], original)
            suffix = f"_{view}_statistics" if model.normalize_target else ""
            for name, value in picture_figures(videos[label], original, hidden[0]).items():
                found[f"video/{name}{suffix}"] = value
            if "audio" in whole and window.has_audio:
                sounds[label] = whole["audio"]
        figures[system] = found
    note = NOTE if any(model.normalize_target for model in systems.values()) else ""
    return Comparison(clip, window.waveform if window.has_audio else None, videos, errors, sounds, figures, note)


def write_wave(path: Path, waveform: Tensor, sample_rate: int) -> None:
    """Write (samples,) float32 in [-1, 1] as 16-bit WAV."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, sample_rate, 0, "NONE", ""))
        file.writeframes((waveform * 32767).short().numpy().tobytes())
