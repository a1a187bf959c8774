"""One window as it is, masked, and as models reconstruct it: frames, audio and metrics."""

import wave
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from avmae.clip import ClipSpec
from avmae.data.decode.encode import write_video
from avmae.data.decode.frames import Frames
from avmae.data.decode.window import Window
from avmae.data.read import window_batch
from avmae.data.spectrogram import LogMel
from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.masking import Mask
from avmae.models.tokens import gather_tokens, scatter_tokens
from avmae.viewing.images import ROW, contact_sheet, error_frames, pixels, side_by_side, spectrogram_image

Statistics = Literal["true", "visible"]

VIEWS: dict[Statistics, str] = {
    "true": "with true patch statistics",
    "visible": "from visible patches alone",
}
"""How `MaskedAutoencoder.fill` completes patches that were predicted up to their mean and standard deviation."""
COLUMNS = 8
NOTE = "true patch statistics: each masked patch's own mean and standard deviation are given, as in the papers' figures"


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; everything by the label under which it is shown.

    Args:
        clip: shape of the window.
        waveform: (samples,) float32 of the window; None without audio.
        videos: (T, H, W, 3) uint8 each: the original, what was left visible, then the reconstructions.
        errors: (T, H, W, 3) uint8 of each reconstruction.
        audio: (1, 1, L, F) float32 log-mel each, NaN where masked: the original, `masked`, then the reconstructions;
            empty without audio, the original alone where no model takes it.
        metrics: by system, over masked patches alone: `video/masked_mse` and `audio/masked_mse` in the units of the
            target (None without audio), PSNR in dB and SSIM in [0, 1] of the video.
        note: what the images cannot be understood without.
    """

    clip: ClipSpec
    waveform: np.ndarray | None
    videos: dict[str, Frames]
    errors: dict[str, Frames]
    audio: dict[str, Tensor]
    metrics: dict[str, dict[str, float | None]]
    note: str

    def sheet(self, title: str) -> Image.Image:
        """Frames, errors and spectrograms on one sheet."""
        columns = np.unique(np.linspace(0, self.clip.frames - 1, COLUMNS).round().astype(int))
        rows = []
        for label, frames in self.videos.items():
            rows.append((label, list(frames[columns])))
            if label in self.errors:
                rows.append(("error, brightest at 50%", list(self.errors[label][columns])))
        if spectrograms := self.spectrograms():
            rows.append(("audio, in the order above", list(spectrograms.values())))
        return contact_sheet(title, rows, self.note)

    def spectrograms(self) -> dict[str, Frames]:
        """The audio as (H, W, 3) uint8 images in one scale of brightness; none where no model takes audio."""
        if len(self.audio) < 2:
            return {}
        low, high = (np.quantile(self.audio["original"].numpy(), q) for q in (0.02, 0.998))
        height = max(ROW, self.clip.size)
        return {label: spectrogram_image(x[0, 0].numpy(), low, high, height) for label, x in self.audio.items()}

    def waveform_of(self, label: str) -> Tensor:
        """The audio of a label as a waveform (samples,) float32 in [-1, 1], its masked part silent.

        The original, too, is made from its spectrogram, so that every audible difference is due to the model.
        """
        return LogMel(self.clip).invert(self.audio[label].nan_to_num(-1e4))[0].clamp(-1, 1)

    @cached_property
    def audible(self) -> dict[str, Tensor]:
        """The waveforms of the original and the reconstructions by label; see `waveform_of`."""
        return {label: self.waveform_of(label) for label in self.audio if label != "masked"}

    def write(self, folder: Path, title: str) -> dict[str, Path]:
        """Write `reconstruction.mp4` with the window's audio, `reconstruction.png`, and a WAV for each of `audible`.

        Returns:
            The WAV files by label.
        """
        self.sheet(title).save(folder / "reconstruction.png")
        rate, video = self.clip.fps / self.clip.stride, side_by_side(self.videos)
        write_video(folder / "reconstruction.mp4", video, rate, self.waveform, self.clip.sample_rate)
        files = {}
        for label, waveform in self.audible.items():
            files[label] = folder / f"{label.replace(', ', '_').replace(' ', '_')}.wav"
            with wave.open(str(files[label]), "wb") as file:
                file.setparams((1, 2, self.clip.sample_rate, 0, "NONE", ""))
                file.writeframes((waveform * 32767).short().numpy().tobytes())
        return files


def reconstruct_window(
    model: MaskedAutoencoder, batch: Mapping[str, Any], seed: int
) -> tuple[dict[str, Tensor], dict[Statistics, dict[str, Tensor]], dict[str, float]]:
    """Mask most of one clip and reconstruct it, on the device of the model; all else is on the CPU.

    Returns:
        By modality (1, C, *shape), NaN where masked; the same by statistics with the masked part filled in, see
        `MaskedAutoencoder.fill`, of a model trained on plain targets for `true` alone; and by modality the mean squared
        error over masked patches in the units of the target.
    """
    parameter = next(model.parameters())
    device = parameter.device
    masks = model.draw_masks(1, torch.Generator().manual_seed(seed))
    patches = model.encoder.patchify(batch)
    floats = {name: batch[name].to(device, parameter.dtype) for name in ("video", "audio") if name in batch}
    inputs = {**floats, "has_audio": batch["has_audio"].to(device)}
    # Not inference mode, under which sharded weights cannot be gathered.
    with torch.no_grad():
        result = model(inputs, {name: Mask(*(index.to(device) for index in mask)) for name, mask in masks.items()})
    masked = {}
    for name, decoder in model.decoders.items():
        mask = masks[name]
        visible = gather_tokens(patches[name], mask.visible)
        nothing = torch.full_like(gather_tokens(patches[name], mask.masked), float("nan"))
        masked[name] = decoder.grid.unpatchify(scatter_tokens([(visible, mask.visible), (nothing, mask.masked)]))
    predictions = {name: prediction.float().cpu() for name, prediction in result.predictions.items()}
    views = [view for view in VIEWS if model.normalize_target or view == "true"]
    whole = {view: model.fill(batch, masks, predictions, view) for view in views}
    return masked, whole, {name: loss.mean().item() for name, loss in result.losses.items()}


def video_metrics(frames: Frames, truth: Frames, masked: Tensor) -> dict[str, float]:
    """PSNR in dB and SSIM over masked pixels.

    Args:
        frames: (T, H, W, 3) uint8.
        truth: of the same kind.
        masked: (3, T, H, W) bool.
    """
    ours, theirs = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 for x in (frames, truth))
    where = masked.transpose(0, 1)
    _, similarity = structural_similarity_index_measure(ours, theirs, data_range=1.0, return_full_image=True)
    return {
        "psnr_hidden": -10 * (ours - theirs)[where].square().mean().clamp(min=1e-10).log10().item(),
        "ssim_hidden": similarity[where].mean().item(),
    }


def compare(
    systems: Mapping[str, MaskedAutoencoder], window: Window, seed: int, without_audio: bool = False
) -> Comparison:
    """Reconstruct one window, the same share of it masked, by every system.

    The mask is the same for systems with the same patches; other masks are shown as well.

    Args:
        systems: by label, in evaluation mode and all of the same clip shape, on any device.
        window: its centre square is shown.
        seed: of the masks.
        without_audio: reconstruct it also without its audio, by systems that take any: what does the audio tell?
    """
    clip = next(iter(systems.values())).clip
    batch = window_batch(window, clip)
    cases: dict[str, tuple[MaskedAutoencoder, Mapping[str, Any]]] = {}
    for system, model in systems.items():
        cases[system] = model, batch
        if without_audio and window.has_audio and "audio" in model.encoder.modalities:
            cases[f"{system}, without audio"] = model, {**batch, "has_audio": torch.zeros_like(batch["has_audio"])}

    def frames(versions: Mapping[str, Any]) -> Frames:
        return pixels(versions["video"][0].numpy(), clip.pixel_mean, clip.pixel_std)

    videos, errors, metrics = {"original": frames(batch)}, {}, {}
    audio = {"original": batch["audio"]} if window.has_audio else {}
    patterns: list[Tensor] = []
    for system, (model, given) in cases.items():
        visible, views, losses = reconstruct_window(model, given, seed)
        masked, heard = visible["video"].isnan(), bool(given["has_audio"])
        found = {f"{x}/masked_mse": loss if x == "video" or heard else None for x, loss in losses.items()}
        if "audio" in visible and heard:
            audio.setdefault("masked", visible["audio"])
        if not any(torch.equal(masked, other) for other in patterns):
            label = f"masked, {float(masked.float().mean()):.0%}"
            videos[f"{label} by {system}" if patterns else label] = frames(visible)
            patterns.append(masked)
        for view, whole in views.items():
            note = f", {VIEWS[view]}" if model.normalize_target else ""
            label = f"{system}{note}" if len(cases) > 1 else VIEWS[view] if note else "reconstructed"
            videos[label] = frames(whole)
            errors[label] = error_frames(videos[label], videos["original"])
            suffix = f"_{view}_statistics" if model.normalize_target else ""
            for name, value in video_metrics(videos[label], videos["original"], masked[0]).items():
                found[f"video/{name}{suffix}"] = value
            if "audio" in whole and heard:
                audio[label] = whole["audio"]
        metrics[system] = found
    note = NOTE if any(model.normalize_target for model in systems.values()) else ""
    return Comparison(clip, window.waveform if window.has_audio else None, videos, errors, audio, metrics, note)
