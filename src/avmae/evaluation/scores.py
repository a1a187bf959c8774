"""Scores by clip: each one once, however many views of it were seen and by how many processes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from avmae.data.datamodule import Batch
from avmae.models.classifier import Classifier

FIGURES = ("top1", "top5", "mAP", "AUC", "d_prime")
"""Scores of all clips and of those with and without audio, from `ClipScores` and `TagScores`."""


def scores_of(network: Classifier, clips: int) -> "ClipScores":
    """What adds up a network's scores of so many clips."""
    return (TagScores if network.many_labels else ClipScores)(clips, network.classes)


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
        self.scores.index_add_(0, clip_id, self.probabilities(logits.float()) * scored[:, None])
        self.views.index_add_(0, clip_id, scored.long())
        # A clip has audio if any of its windows does; unscored views must not overwrite clip 0.
        self.note_labels(clip_id, batch["label"], scored)
        self.has_audio.scatter_reduce_(0, clip_id, (scored & batch["has_audio"]).long(), "amax")

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of one class among all."""
        return logits.softmax(-1)

    def note_labels(self, clip_id: Tensor, label: Tensor, scored: Tensor) -> None:
        """Keep the label of each clip."""
        self.labels.scatter_reduce_(0, clip_id, torch.where(scored, label, -1), "amax")

    def subsets(self) -> dict[str, Tensor]:
        """Which clips (clips,) bool have a score, all, and those with and without audio, by prefix; none is empty."""
        seen, audible = self.views > 0, self.has_audio > 0
        rows = {"": seen, "sound/": seen & audible, "silent/": seen & ~audible}
        return {prefix: chosen for prefix, chosen in rows.items() if chosen.any()}

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
        for prefix, rows in self.subsets().items():
            for k in (1, 5):
                result[f"{prefix}top{k}"] = hits[rows, :k].any(1).float().mean()
        # Arrays, for of tensors torchmetrics would take the axis away where there is one clip.
        result["predictions"] = torch.where(seen, best[:, 0], -1).cpu().numpy()
        result["has_audio"] = (self.has_audio > 0).cpu().numpy()
        return result


class TagScores(ClipScores):
    """As `ClipScores`, of clips with many labels: probabilities of each class by itself, ranked over clips."""

    def __init__(self, clips: int, classes: int) -> None:
        super().__init__(clips, classes)
        self.add_state("labels", torch.zeros(clips, classes, dtype=torch.long), dist_reduce_fx="max")

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of each class."""
        return logits.sigmoid()

    def note_labels(self, clip_id: Tensor, label: Tensor, scored: Tensor) -> None:
        """Keep the labels of each clip: (B, classes) of 0 and 1, or (B,) where every clip has one."""
        if label.ndim == 1:
            label = (label[:, None] == torch.arange(self.classes, device=label.device)).long()
        self.labels.scatter_reduce_(0, clip_id[:, None].expand_as(label), label * scored[:, None], "amax")

    def compute(self) -> dict[str, Any]:
        """What `ranking` finds, for all clips and for those with and without audio.

        Returns:
            `mAP`, `AUC` and `d_prime` (0-d float tensors; of each non-empty subset with the prefix `sound/` or
            `silent/`), `clips` and `unscored` (counts), and as a NumPy array `by_class` (classes, 3): average
            precision and AUC, nan where there is none, and how many clips have the class.
        """
        seen, scores = self.views > 0, self.scores / self.views.clamp(min=1)[:, None]
        result: dict[str, Any] = {"clips": int(seen.sum()), "unscored": int((~seen).sum())}
        for prefix, rows in self.subsets().items():
            precision, auc = ranking(scores[rows], self.labels[rows])
            mean_auc = auc.nanmean()
            figures = {"mAP": precision.nanmean(), "AUC": mean_auc}
            # As CAV-MAE and its predecessors have it, of the mean AUC: sqrt(2) times the normal quantile.
            figures["d_prime"] = 2**0.5 * torch.special.ndtri(mean_auc)
            # Of a perfect ranking it is infinite.
            result |= {f"{prefix}{name}": value for name, value in figures.items() if value.isfinite()}
        precision, auc = ranking(scores[seen], self.labels[seen])
        result["by_class"] = torch.stack([precision, auc, self.labels[seen].sum(0)], 1).cpu().numpy()
        return result


def ranking(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Average precision and area under the ROC curve of each class, (classes,) float32, over N clips.

    Both are torchmetrics'. They are nan where no clip has the class, the area also where all have it.

    Args:
        scores: (N, classes) float32.
        labels: (N, classes) int64 of 0 and 1.
    """
    precision, auc = scores.new_full((2, labels.shape[1]), float("nan"))
    for label in labels.any(0).nonzero().flatten().tolist():
        column, truth = scores[:, label], labels[:, label]
        precision[label] = binary_average_precision(column, truth)
        if not truth.all():
            auc[label] = binary_auroc(column, truth)
    return precision, auc


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


def per_tag(by_class: NDArray[np.float32], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`AP`, `AUC` where not all clips have it, and `clips` of each class that any has, from `TagScores`."""
    return {
        name: {"AP": float(ap)} | ({} if np.isnan(auc) else {"AUC": float(auc)}) | {"clips": int(clips)}
        for name, (ap, auc, clips) in zip(names, by_class, strict=True)
        if clips
    }


def per_class(counts: Tensor, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`top1` as a share of 1 and `clips` of each class that has any, from `confusion`."""
    return {
        name: {"top1": float(row[label] / row.sum()), "clips": int(row.sum())}
        for label, (name, row) in enumerate(zip(names, counts, strict=True))
        if row.any()
    }
