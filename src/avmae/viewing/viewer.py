"""One window of a video as models see it: reconstructed, attended to, classified; what the demo's page shows."""

import threading
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from avmae.clip import ClipSpec
from avmae.data.decode.audio import Waveform
from avmae.data.decode.frames import Frames
from avmae.data.decode.window import Window, probe, read_window
from avmae.data.read import window_batch
from avmae.errors import MediaError
from avmae.models.build import MaskSpec, build_maskings
from avmae.viewing.images import heat
from avmae.viewing.reconstruction import VIEWS, Comparison, Statistics, compare
from avmae.viewing.systems import load_autoencoder, load_classifier, top_classes

TOP = 5
Classes = dict[str, float]


@dataclass(frozen=True)
class Panel:
    """One version of a window.

    Args:
        frames: (T, H, W, 3) uint8.
        audio: (samples,) float32 in [-1, 1]; None where there is none.
        spectrogram: (H, W, 3) uint8; None where the model takes no audio.
    """

    label: str
    frames: Frames
    audio: Waveform | None
    spectrogram: Frames | None


@dataclass(frozen=True)
class Attention:
    """What the audio's queries attend to in the last cross-attention, averaged over queries and heads.

    Args:
        frames: (t, H, W, 3) uint8, the first frame of each tubelet under its heat.
        seconds: (t,), when each of them is, from the window's start.
        share: of all attention that goes to video tokens.
        even: share of the tokens that are video tokens.
        peak: the most attended video token's weight, 1 being an even share.
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
        metrics: how good the reconstruction is, in a sentence.
        panels: original, masked, reconstructed.
        clip: shape of the window.
        attention: or why there is none.
        with_audio: probabilities of the first classes; None without a classifier, or where it gets no audio.
        without_audio: of the same kind.
    """

    title: str
    metrics: str
    panels: list[Panel]
    clip: ClipSpec
    attention: Attention | str
    with_audio: Classes | None
    without_audio: Classes | None


class Viewer:
    """The models behind the page: of a pretraining checkpoint, and of a fine-tuned one if classes are wanted.

    Longer videos than `max_minutes` are refused.

    Raises:
        InputError: a checkpoint cannot be read, or is of the other kind.
    """

    def __init__(self, ckpt: str | Path, classifier: str | Path | None, max_minutes: float) -> None:
        self.model, settings = load_autoencoder(ckpt)
        self.name = f"{settings['model']['name']} of size {settings['size']['name']}"
        self.mask = MaskSpec(**settings["mask"])
        self.takes_audio = "audio" in self.model.decoders
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
            ratio: share of the video's places to mask.
            audio_ratio: share of the audio's; of no meaning for a model that takes none.
            seed: of the masks.
            position: of the window, from 0 for the first to 1 for the last that fits.
            statistics: see `MaskedAutoencoder.fill`; of no meaning for a model trained on plain targets.

        Raises:
            InputError: a number is out of range.
            MediaError: the file is no video that can be read, or too long.
        """
        maskings = build_maskings(self.model.encoder, replace(self.mask, ratio=ratio, audio_ratio=audio_ratio))
        length = probe(file).seconds
        if length > 60 * self.max_minutes:
            raise MediaError(f"{file}: lasts {length:.0f} s, more than max_minutes={self.max_minutes:g} allows; cut it")
        clip = self.model.clip
        window = read_window(file, clip, position, clip.canvas)
        with self.lock:
            self.model.maskings = maskings
            found = compare({self.name: self.model}, window, seed)
        classes = self._classify(file, position)
        repeated = ", repeated" if length < clip.seconds else ""
        seconds = f"{clip.seconds:.2f} s from {window.start:.2f} s of {length:.2f} s{repeated}"
        return View(
            title=f"{file.name}: {seconds}, {'with audio' if window.has_audio else 'without audio'}",
            metrics=self._metrics(found, statistics),
            panels=self._panels(found, statistics),
            clip=clip,
            attention=self._attention(window, found.videos["original"]),
            with_audio=classes.get(True),
            without_audio=classes.get(False),
        )

    def _metrics(self, found: Comparison, statistics: Statistics) -> str:
        metrics = found.metrics[self.name]
        suffix = f"_{statistics}_statistics" if self.model.normalize_target else ""
        psnr, ssim = (metrics[f"video/{name}_hidden{suffix}"] for name in ("psnr", "ssim"))
        errors = [("video", metrics["video/masked_mse"]), ("audio", metrics.get("audio/masked_mse"))]
        shown = ", ".join(f"{name} {error:.3f}" for name, error in errors if error is not None)
        return f"Masked pixels: PSNR {psnr:.1f} dB, SSIM {ssim:.2f}. Mean squared error of masked patches: {shown}"

    def _panels(self, found: Comparison, statistics: Statistics) -> list[Panel]:
        original, masked, *_ = found.videos
        whole = VIEWS[statistics] if self.model.normalize_target else "reconstructed"
        label = f"reconstructed {whole}" if self.model.normalize_target else whole
        spectrograms = found.spectrograms()
        panels = []
        for shown, video, audio in ((original, original, original), (masked, masked, "masked"), (label, whole, whole)):
            plain = found.waveform if video == original else None
            waveform = found.waveform_of(audio).numpy() if audio in spectrograms else plain
            panels.append(Panel(shown, found.videos[video], waveform, spectrograms.get(audio)))
        return panels

    def _attention(self, window: Window, frames: Frames) -> Attention | str:
        encoder, batch = self.model.encoder, window_batch(window, self.model.clip)
        if not window.has_audio:
            return "There is no audio in this window to attend with."
        with torch.inference_mode():
            weights = encoder.cross_attention(encoder.patchify(batch), {"audio": batch["has_audio"]})
        if weights is None:
            return f"{self.name} has no attention between audio and video."
        grid = encoder.modalities["video"].grid
        # Mean over heads and queries.
        video = weights["audio"]["video"][0].mean((0, 1))
        tokens = video.numel() + weights["audio"]["audio"].shape[-1]
        step = grid.patch[0]
        return Attention(
            frames=heat(frames[::step], (video / video.max()).reshape(grid.size).numpy()),
            seconds=[i * step * self.model.clip.stride / self.model.clip.fps for i in range(grid.size[0])],
            share=video.sum().item(),
            even=video.numel() / tokens,
            peak=video.max().item() * tokens,
        )

    def _classify(self, file: Path, position: float) -> dict[bool, Classes]:
        """The first classes with and without the audio; the former only where there is some and the model takes it."""
        if self.classifier is None:
            return {}
        clip, found = self.classifier.clip, dict[bool, Classes]()
        batch = window_batch(read_window(file, clip, position, clip.canvas), clip)
        audible = bool(batch["has_audio"]) and "audio" in self.classifier.encoder.modalities
        for has_audio in (True, False) if audible else (False,):
            with torch.inference_mode():
                logits = self.classifier(batch | {"has_audio": torch.tensor([has_audio])})
            top = top_classes(self.classifier.probabilities(logits)[0], self.classes, TOP)
            found[has_audio] = {row["class"]: row["score"] for row in top}
        return found
