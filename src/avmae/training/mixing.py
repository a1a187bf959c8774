"""Mixup and cutmix of clips with audio."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from avmae.data.datamodule import Batch
from avmae.errors import InputError


@dataclass(frozen=True)
class MixSpec:
    """How clips of a batch are mixed, each with its mirror image in the batch's order, as timm and VideoMAE do.

    Args:
        mixup: alpha of the Beta distribution of the share (Zhang et al. 2018; VideoMAE: 0.8); 0 for none.
        cutmix: the same for a box of the other clip's frames (Yun et al. 2019; VideoMAE: 1.0); 0 for none.
        switch: probability of cutmix where both are on.

    Raises:
        InputError: a value is out of range.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    switch: float = 0.5

    def __post_init__(self) -> None:
        if self.mixup < 0 or self.cutmix < 0 or not 0 <= self.switch <= 1:
            raise InputError("task.mix: mixup and cutmix are at least 0, switch is a probability")


def mix(batch: Batch, classes: int, spec: MixSpec, rng: np.random.Generator, mel_std: float) -> tuple[Batch, Tensor]:
    """Mix a batch, one process's, and its labels by one share (timm's and VideoMAE's mode `batch`).

    Every batch is mixed. Smoothing of the labels commutes with mixing and is left to the loss.

    Frames are averaged (mixup) or a box is replaced in all of them (cutmix). Audio has no box of its own: in both cases
    the power spectra are averaged by the video's share, as if both had sounded at once, and a silent clip adds silence.
    A mixed clip has audio if either has.

    Args:
        batch: B clips.
        classes: how many there are.
        spec: which mixing.
        rng: of kind, share and box.
        mel_std: by which the log-mel spectrogram was divided.

    Returns:
        The batch with other video and audio, and the target (B, classes) float32: a distribution, or, of clips with
        many labels, a share of each.
    """
    label = batch["label"]
    # Not one_hot, which reads the labels back on a CPU.
    target = (label[:, None] == torch.arange(classes, device=label.device) if label.ndim == 1 else label).float()
    if not (spec.mixup or spec.cutmix):
        return batch, target
    cut = bool(spec.cutmix) and (not spec.mixup or rng.random() < spec.switch)
    alpha = spec.cutmix if cut else spec.mixup
    share, video, other = float(rng.beta(alpha, alpha)), batch["video"], batch["video"].flip(0)
    if cut:
        (top, bottom, left, right), share = _box(video.shape, share, rng)
        video = video.clone()
        video[..., top:bottom, left:right] = other[..., top:bottom, left:right]
    else:
        video = share * video + (1 - share) * other
    # The mean of the logarithm cancels out: adding a constant to all logarithms of power adds it to their mixture.
    spectra = (batch["audio"] * mel_std).masked_fill(~batch["has_audio"][:, None, None, None], float("-inf"))
    ours, theirs = (spectra + float(np.log(max(s, 1e-12))) for s in (share, 1 - share))
    has_audio = batch["has_audio"] | batch["has_audio"].flip(0)
    audio = torch.where(has_audio[:, None, None, None], torch.logaddexp(ours, theirs.flip(0)) / mel_std, batch["audio"])
    mixed: Batch = {**batch, "video": video, "audio": audio, "has_audio": has_audio}
    return mixed, share * target + (1 - share) * target.flip(0)


def _box(shape: torch.Size, share: float, rng: np.random.Generator) -> tuple[tuple[int, int, int, int], float]:
    """A box (top, bottom, left, right) of 1 - share of the area about a random centre, and the share that it leaves.

    At the border less is cut.
    """
    edges: list[int] = []
    for length in shape[-2:]:
        extent, center = int(length * math.sqrt(1 - share)), int(rng.integers(length))
        # As in VideoMAE, of an odd extent one less.
        edges += [max(0, center - extent // 2), min(length, center + extent // 2)]
    top, bottom, left, right = edges
    return (top, bottom, left, right), 1 - (bottom - top) * (right - left) / (shape[-2] * shape[-1])
