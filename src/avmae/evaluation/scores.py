"""Scores by clip: each one once, however many views of it were seen and by how many processes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from avmae.data.datamodule import Batch


class ClipScores(Metric):
    """Adds up the class probabilities of each clip's views; summed over processes, each view counts once."""

    full_state_update = False
    scores: Tensor
    views: Tensor
    labels: Tensor
    has_audio: Tensor

    def __init__(self, clips: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.add_state("scores", torch.zeros(clips, classes), dist_reduce_fx="sum")
        self.add_state("views", torch.zeros(clips, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("labels", torch.full((clips,), -1), dist_reduce_fx="max")
        self.add_state("has_audio", torch.zeros(clips, dtype=torch.long), dist_reduce_fx="max")

    def update(self, logits: Tensor, batch: Batch) -> None:
        """Take (B, classes) logits; views with ``clip_id`` -1 are left out."""
        scored = batch["clip_id"] >= 0
        clip_id = batch["clip_id"].clamp(min=0)
        self.scores.index_add_(0, clip_id, logits.float().softmax(-1) * scored[:, None])
        self.views.index_add_(0, clip_id, scored.long())
        # A clip has audio if any of its windows does; unscored views must not overwrite clip 0.
        self.labels.scatter_reduce_(0, clip_id, torch.where(scored, batch["label"], -1), "amax")
        self.has_audio.scatter_reduce_(0, clip_id, (scored & batch["has_audio"]).long(), "amax")

    def compute(self) -> dict[str, Any]:
        """Accuracies as shares of 1, for all clips and for those with and without audio, and what they are made of.

        Returns:
            `top1`, `top5` (0-d float tensors; of each non-empty subset with the prefix `sound/` or `silent/`), `clips`
            and `unscored` (counts), and as NumPy arrays `predictions` (clips,) int64 with -1 for clips without a score,
            and `has_audio` (clips,) bool.
        """
        seen = self.views > 0
        scores = self.scores / self.views.clamp(min=1)[:, None]
        # Not torchmetrics' functions, which do not take one class.
        best = scores.topk(min(5, self.classes)).indices
        hits = best == self.labels[:, None]
        result: dict[str, Any] = {"clips": int(seen.sum()), "unscored": int((~seen).sum())}
        subsets = {"": seen, "sound/": seen & (self.has_audio > 0), "silent/": seen & (self.has_audio == 0)}
        for prefix, rows in subsets.items():
            if rows.any():
                for k in (1, 5):
                    result[f"{prefix}top{k}"] = hits[rows, :k].any(1).float().mean()
        # Arrays, for of tensors torchmetrics would take the axis away where there is one clip.
        result["predictions"] = torch.where(seen, best[:, 0], -1).cpu().numpy()
        result["has_audio"] = (self.has_audio > 0).cpu().numpy()
        return result


class ClipMeans:
    """Averages errors over views that have one, those of all clips and of clips with and without audio."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def update(self, errors: Mapping[str, Tensor], batch: Batch) -> None:
        """Take errors (B,) by name; views with ``clip_id`` -1 are left out, and errors that are nan."""
        for name, error in errors.items():
            scored = ((batch["clip_id"] >= 0) & ~error.isnan()).double()
            # In float64: what audio changes early in training is lost in the rounding of a float32 sum.
            sums = self.sums.setdefault(name, scored.new_zeros(2, 2))
            sums.index_add_(0, batch["has_audio"].long(), torch.stack([error.nan_to_num() * scored, scored], 1))

    def compute(self) -> dict[str, float]:
        """Means by name, those of non-empty subsets with the prefix `sound/` or `silent/`."""
        return {
            prefix + name: float(error / count)
            for name, sums in self.sums.items()
            for prefix, (error, count) in {"": sums.sum(0), "sound/": sums[1], "silent/": sums[0]}.items()
            if count
        }


def confusion(predictions: NDArray[np.int64], labels: Sequence[int], classes: int) -> Tensor:
    """Count clips by true class and predicted class: (classes, classes) int64, on the CPU.

    Of the predictions (clips,) int64, -1 stands for clips without a score, which are left out.
    """
    predicted, true = torch.from_numpy(predictions), torch.tensor(labels, dtype=torch.int64)
    kept = predicted >= 0
    return (true * classes + predicted)[kept].bincount(minlength=classes**2).view(classes, classes)


def per_class(counts: Tensor, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`top1` as a share of 1 and `clips` of each class that has any, from `confusion`."""
    return {
        name: {"top1": float(row[label] / row.sum()), "clips": int(row.sum())}
        for label, (name, row) in enumerate(zip(names, counts, strict=True))
        if row.any()
    }
