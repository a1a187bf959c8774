"""A classifier as a program that needs torch alone, or ONNX Runtime alone."""

import logging
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from avmae.clip import ClipSpec
from avmae.errors import InputError
from avmae.models.classifier import Classifier

PROGRAMS = {"torch": "classifier.pt2", "onnx": "classifier.onnx"}
"""Names of files by format."""


def check_format(format: str) -> None:
    """Raise an InputError unless it is one of `PROGRAMS`."""
    if format not in PROGRAMS:
        raise InputError(f"format={format} is unknown; choose {' or '.join(PROGRAMS)}")


def to_program(model: Classifier) -> ExportedProgram:
    """Trace a classifier for any number of clips, given as a dict of its modalities and ``has_audio``."""
    grids = {name: encoder.grid for name, encoder in model.encoder.modalities.items()}
    # Two clips, for of one the program would be for one clip alone.
    clips = {name: torch.zeros(2, g.channels, g.stack * g.shape[0], *g.shape[1:]) for name, g in grids.items()}
    clips["has_audio"] = torch.ones(2, dtype=torch.bool)
    shapes = {name: {0: Dim("clips", min=1)} for name in clips}
    return export(model, (clips,), dynamic_shapes=(shapes,))


class FromWindow(nn.Module):
    """A classifier together with what it needs to take windows as they are decoded.

    Args:
        model: in evaluation mode.
        clip: its windows.
        spectrogram: (B, samples) to log-mel (B, 1, L, F), as it was trained on.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Classifier, clip: ClipSpec, spectrogram: nn.Module) -> None:
        super().__init__()
        self.model, self.spectrogram = model, spectrogram
        self.register_buffer("mean", torch.tensor(clip.pixel_mean).view(3, 1, 1, 1))
        self.register_buffer("std", torch.tensor(clip.pixel_std).view(3, 1, 1, 1))

    def forward(self, frames: Tensor, waveform: Tensor | None = None, has_audio: Tensor | None = None) -> Tensor:
        """Class probabilities (B, classes) of windows.

        Args:
            frames: (B, T, S, S, 3) uint8 RGB.
            waveform: (B, samples) float32 in [-1, 1], for systems with audio.
            has_audio: (B,) bool, likewise.
        """
        batch = {"video": (frames.permute(0, 4, 1, 2, 3) / 255.0 - self.mean) / self.std}
        if waveform is None or has_audio is None:
            batch["has_audio"] = frames.new_zeros(frames.shape[0], dtype=torch.bool)
        else:
            batch |= {"audio": self.spectrogram(waveform), "has_audio": has_audio}
        return self.model.probabilities(self.model(batch))


def write_program(model: Classifier, spectrogram: nn.Module, folder: Path, format: str) -> str:
    """Write a classifier for any number of clips: `to_program` for torch, or `FromWindow` for ONNX.

    The latter's inputs are `frames` and, of systems with audio, `waveform` and `has_audio`; its output is
    `probabilities`.

    Returns:
        The file's name.

    Raises:
        InputError: the packages that ONNX needs are not installed.
    """
    clip, file = model.clip, folder / PROGRAMS[format]
    if format == "torch":
        torch.export.save(to_program(model), file)
        return file.name
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError("format=onnx needs more packages: pip install 'avmae[onnx]'") from error
    # They tell of each constant that they fold, or do not.
    for name in ("onnx_ir", "onnxscript"):
        logging.getLogger(name).setLevel(logging.WARNING)
    windows = {"frames": torch.zeros(2, clip.frames, clip.size, clip.size, 3, dtype=torch.uint8)}
    if "audio" in model.encoder.modalities:
        windows |= {"waveform": torch.zeros(2, clip.samples), "has_audio": torch.ones(2, dtype=torch.bool)}
    shapes = {name: {0: Dim("windows", min=1)} for name in windows}
    program = export(FromWindow(model, clip, spectrogram).eval(), (), windows, dynamic_shapes=shapes)
    written = torch.onnx.export(
        program, input_names=list(windows), output_names=["probabilities"], dynamo=True, verbose=False
    )
    assert written is not None
    written.save(file)
    return file.name
