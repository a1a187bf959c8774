"""Means and standard deviations of pixels and of log-mel spectrograms, for the normalisation of a `ClipSpec`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avmae.data.datamodule import ClipDataModule
from avmae.data.spectrogram import LogMel
from avmae.errors import InputError


@dataclass(frozen=True)
class Statistics:
    """Over one window of each of some training clips that could be read.

    Pixels in [0, 1] by RGB channel; the natural-log mel power spectrogram is None if no clip has audio.
    """

    clips: int
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    mel_mean: float | None = None
    mel_std: float | None = None


def measure(
    data: ClipDataModule, limit: int | None, seed: int, progress: Callable[[Iterable[Any]], Iterable[Any]]
) -> Statistics:
    """Measure the central window of training clips, of a limited number that is drawn by the seed, or of all.

    Raises:
        InputError: there are no training clips, or none that can be read.
    """
    entries = data.splits.train
    if not entries:
        raise InputError("the data set has no training clips; set data.train")
    chosen = np.random.default_rng(seed).permutation(len(entries))[: limit or None]
    # Clip by clip, for frames of different widths are padded in a batch.
    loader = data.eval_loader([entries[i] for i in sorted(chosen)], segments=1, crops=1, batch_size=1)
    mel = LogMel(replace(data.clip, mel_mean=0.0, mel_std=1.0))
    # Number of values, their sum and the sum of their squares, in float64: of differences of means of many numbers.
    pixels, levels = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    failed: set[str] = set()
    for sample in progress(loader):
        kept = sample["clip_id"] >= 0
        failed.update(sample["unreadable"])
        pixels += _sums(sample["frames"][kept].flatten(0, 3).double() / 255)
        audible = kept & sample["has_audio"]
        if audible.any():
            levels += _sums(mel(sample["waveform"][audible]).view(-1, 1))
    if not pixels[0, 0]:
        raise InputError(f"none of {len(chosen)} training clips can be read: {sorted(failed)[0]}")
    found = Statistics(len(chosen) - len(failed), *_mean_and_std(pixels))
    if not levels[0, 0]:
        return found
    (mel_mean,), (mel_std,) = _mean_and_std(levels)
    return replace(found, mel_mean=mel_mean, mel_std=mel_std)


def _sums(values: Tensor) -> Tensor:
    """(N, C) to N, sum and sum of squares, each (C,)."""
    values = values.double()
    return torch.stack([values.new_full(values.shape[1:], len(values)), values.sum(0), values.square().sum(0)])


def _mean_and_std(sums: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    number, total, squares = sums
    mean = total / number
    return tuple(mean.tolist()), tuple((squares / number - mean**2).sqrt().tolist())
