"""One window of a video as models see it: reconstructed, attended to, classified; what the demo's page shows."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avmae.data.datamodule import Batch
from avmae.data.decode.audio import Waveform
from avmae.data.decode.frames import Frames
from avmae.data.decode.window import Window, probe, read_window
from avmae.data.read import window_batch
from avmae.data.spectrogram import LogMel
from avmae.errors import MediaError
from avmae.models.build import MaskSpec, build_maskings
from avmae.viewing.inference import (
    VIEWS,
    Statistics,
    load_autoencoder,
    load_classifier,
    picture_figures,
    reconstruct_window,
    top_classes,
)
from avmae.viewing.pictures import ROW, heat, pixels, spectrogram_picture

TOP = 5
Classes = dict[str, float] | None


@dataclass(frozen=True)
class Panel:
    """One version of a window.

    Args:
        label: what it is.
        frames: (T, H, W, 3) uint8.
        sound: (samples,) float32 in [-1, 1]; None where there is none.
        spectrogram: (H, W, 3) uint8; None where the model does not hear one.
    """

    label: str
    frames: Frames
    sound: Waveform | None = None
    spectrogram: Frames | None = None


@dataclass(frozen=True)
class Attention:
    """What the sound's queries attend to in the last cross-attention, averaged over queries and heads.

    Args:
        frames: (t, H, W, 3) uint8, the first picture of each tubelet under its heat.
        seconds: (t,), when each of them is, from the window's start.
        share: of all attention that goes to picture tokens.
        even: share of the tokens that are picture tokens.
        peak: the most attended picture token's weight by an even share.
    """

    frames: Frames
    seconds: list[float]
    share: float
    even: float
    peak: float


@dataclass(frozen=True)
class View:
    """All that the page shows of one window.

    Args:
        title: which window of what.
        figures: how good the reconstruction is.
        panels: original, masked, reconstructed.
        fps: of the panels.
        sample_rate: of their sounds.
        attention: None where the model has no cross-attention or the window no sound.
        note: why there is no attention; empty if there is.
        with_sound: probabilities by class; None without a classifier, or where there is no sound.
        without_sound: of the same kind.
    """

    title: str
    figures: str
    panels: list[Panel]
    fps: float
    sample_rate: int
    attention: Attention | None
    note: str
    with_sound: Classes
    without_sound: Classes


class Viewer:
    """The models behind the page.

    Args:
        ckpt: of pretraining.
        classifier: a fine-tuned checkpoint; None for no classes.
        max_minutes: length of a video above which it is refused.

    Raises:
        InputError: a checkpoint cannot be read, or is of the other kind.
    """

    def __init__(self, ckpt: str, classifier: str | None, max_minutes: float) -> None:
        self.model, settings = load_autoencoder(ckpt)
        self.name = f"{settings['model']['name']} of size {settings['size']['name']}"
        self.mask = MaskSpec(**settings["mask"])
        self.hears = "audio" in self.model.decoders
        self.classifier, self.classes = None, list[str]()
        if classifier is not None:
            self.classifier, settings = load_classifier(classifier)
            self.classes = settings["class_names"]
        self.max_minutes = max_minutes
        # Masks are drawn by the model: two visitors at once would draw each other's.
        self.lock = threading.Lock()

    def view(
        self, file: Path, ratio: float, audio_ratio: float, seed: int, position: float, statistics: Statistics = "true"
    ) -> View:
        """Reconstruct one window of a file.

        Args:
            file: any video.
            ratio: share of the picture places to hide.
            audio_ratio: share of the sound's; of no meaning for a model that does not hear.
            seed: of the masks.
            position: of the window, from 0 for the first to 1 for the last that fits.
            statistics: see `MaskedAutoencoder.fill`; of no meaning for a model trained on plain targets.

        Raises:
            InputError: a number is out of range.
            MediaError: the file is no video that can be read, or too long.
        """
        mask = replace(self.mask, ratio=ratio, audio_ratio=audio_ratio)
        maskings = build_maskings(self.model.encoder, mask)
        length = probe(file).seconds
        if length > 60 * self.max_minutes:
            raise MediaError(f"{file}: lasts {length:.0f} s, more than max_minutes={self.max_minutes:g} allows; cut it")
        clip = self.model.clip
        window = read_window(file, clip, position, clip.canvas)
        batch = window_batch(window, clip)
        with self.lock:
            self.model.maskings = maskings
            result = reconstruct_window(self.model, batch, seed)
        whole = result.whole[statistics if self.model.normalize_target else "true"]
        hidden = result.masked["video"].isnan()
        labels = ["original", f"masked, {float(hidden.float().mean()):.0%} hidden", "reconstructed"]
        if self.model.normalize_target:
            labels[-1] += f" {VIEWS[statistics]}"
        versions: list[Mapping[str, Any]] = [batch, result.masked, whole]
        frames = [pixels(v["video"][0].numpy(), clip.pixel_mean, clip.pixel_std) for v in versions]
        sounds: list[Any] = [window.waveform if window.has_audio else None, None, None]
        spectrograms: list[Any] = [None, None, None]
        if self.hears and window.has_audio:
            heard = torch.cat([v["audio"] for v in versions])
            low, high = (np.quantile(batch["audio"].numpy(), q) for q in (0.02, 0.998))
            spectrograms = [spectrogram_picture(s[0].numpy(), low, high, ROW) for s in heard]
            # The original goes through the same way back, so that what one hears differ by is the model's.
            sounds = list(LogMel(clip).invert(heard.nan_to_num(-1e4)).clamp(-1, 1).numpy())
        measured = picture_figures(frames[2], frames[0], hidden[0])
        figures = (
            f"Hidden pixels: PSNR {measured['psnr_hidden']:.1f} dB, SSIM {measured['ssim_hidden']:.2f}. "
            f"Mean squared error of hidden patches: pictures {result.losses['video']:.3f}"
        )
        if self.hears and window.has_audio:
            figures += f", sound {result.losses['audio']:.3f}"
        attention, note = self._attention(batch, frames[0], window.has_audio)
        repeated = ", repeated" if length < clip.seconds else ""
        seconds = f"{clip.seconds:.2f} s from {window.start:.2f} s of {length:.2f} s{repeated}"
        return View(
            title=f"{file.name}: {seconds}, {'with sound' if window.has_audio else 'without sound'}",
            figures=figures,
            panels=[Panel(*parts) for parts in zip(labels, frames, sounds, spectrograms, strict=True)],
            fps=clip.fps / clip.stride,
            sample_rate=clip.sample_rate,
            attention=attention,
            note=note,
            **self._classify(file, position, window, batch),
        )

    def _attention(self, batch: Batch, frames: Frames, has_audio: bool) -> tuple[Attention | None, str]:
        encoder = self.model.encoder
        if not has_audio:
            return None, "There is no sound in this window to attend with."
        with torch.inference_mode():
            weights = encoder.cross_attention(encoder.patchify(batch), {"audio": batch["has_audio"]})
        if weights is None:
            return None, f"{self.name} has no attention between sound and pictures."
        grid = encoder.modalities["video"].grid
        # Mean over heads and queries.
        pictures = weights["audio"]["video"][0].mean((0, 1))
        tokens = pictures.numel() + weights["audio"]["audio"].shape[-1]
        step = grid.patch[0]
        return Attention(
            frames=heat(frames[::step], (pictures / pictures.max()).reshape(grid.size).numpy()),
            seconds=[i * step * self.model.clip.stride / self.model.clip.fps for i in range(grid.size[0])],
            share=pictures.sum().item(),
            even=pictures.numel() / tokens,
            peak=pictures.max().item() * tokens,
        ), ""

    def _classify(
        self, file: Path, position: float, window: Window, batch: Batch
    ) -> dict[str, dict[str, float] | None]:
        found: dict[str, dict[str, float] | None] = {"with_sound": None, "without_sound": None}
        if self.classifier is None:
            return found
        clip = self.classifier.clip
        if clip != self.model.clip:
            window = read_window(file, clip, position, clip.canvas)
            batch = window_batch(window, clip)
        for key, has_audio in {"with_sound": True, "without_sound": False}.items():
            if has_audio and not (window.has_audio and "audio" in self.classifier.encoder.modalities):
                continue
            with torch.inference_mode():
                logits = self.classifier(batch | {"has_audio": torch.tensor([has_audio])})
            top = top_classes(logits[0].softmax(-1), self.classes, TOP)
            found[key] = {row["class"]: row["score"] for row in top}
        return found
