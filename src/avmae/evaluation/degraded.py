"""What a model makes of degraded video and audio, everything tested on the same decoded windows."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from avmae.data.datamodule import Batch, ClipDataModule
from avmae.data.degrade import SEVERITIES, Degradation
from avmae.evaluation.batches import Inference
from avmae.evaluation.embedding import Embedder
from avmae.evaluation.scores import ClipScores
from avmae.models.autoencoder import MaskedAutoencoder, normalize_patches
from avmae.models.classifier import Classifier
from avmae.models.masking import Mask
from avmae.models.tokens import gather_tokens

Row = dict[str, Any]
"""`degradation` (its kind, or clean), `severity` (1 for kinds that have none), `subset` (all, sound or silent clips),
`metric` and `value`."""


class _MaskedError(nn.Module):
    """Mean squared error of masked video patches, of all clips and of those with and without sound.

    The model sees degraded patches and has to predict clean ones, in the units of its training.
    """

    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        # What audio changes early in training is lost in the rounding of a float32 sum.
        self.register_buffer("sums", torch.zeros(2, 2, dtype=torch.float64))

    def update_with(self, model: MaskedAutoencoder, batch: Batch, clean: Batch) -> None:
        masks = draw_by_view(model, clean)
        prediction = model(batch, masks).predictions["video"].float()
        target = gather_tokens(model.encoder.patchify(clean)["video"], masks["video"].masked)
        if model.normalize_target:
            target, _, _ = normalize_patches(target)
        scored = (clean["clip_id"] >= 0).double()
        error = (prediction - target).square().reshape(len(scored), -1).mean(1, dtype=torch.float64)
        self.sums.index_add_(0, clean["has_audio"].long(), torch.stack([error * scored, scored], 1))

    def compute(self) -> dict[str, float]:
        silent, sound = self.sums.tolist()
        total = [a + b for a, b in zip(silent, sound, strict=True)]
        parts = {"": total, "sound/": sound, "silent/": silent}
        return {f"{name}hidden_mse": error / count for name, (error, count) in parts.items() if count}


def draw_by_view(model: MaskedAutoencoder, batch: Batch) -> dict[str, Mask]:
    """Masks that are a function of each clip's number and view, whatever else is in the batch."""
    generator = torch.Generator(batch["video"].device)
    drawn = [
        model.draw_masks(1, generator.manual_seed(1000 * clip + view))
        for clip, view in zip(batch["clip_id"].clamp(min=0).tolist(), batch["view"].tolist(), strict=True)
    ]
    return {
        name: Mask(torch.cat([masks[name].visible for masks in drawn]), torch.cat([m[name].masked for m in drawn]))
        for name in drawn[0]
    }


@torch.inference_mode()
def measure(
    model: MaskedAutoencoder | Classifier,
    datamodule: ClipDataModule,
    degradations: Sequence[Degradation],
    inference: Inference,
    embedder: Embedder | None = None,
) -> list[dict[str, Any]]:
    """Test a model on clean test clips and on each degradation of them, in one pass.

    Args:
        model: in evaluation mode.
        datamodule: its test clips, segments and crops.
        degradations: each scored by itself.
        inference: device, precision, progress.
        embedder: is given the clean clips as well.

    Returns:
        Of the clean clips and of each degradation what `ClipScores` finds for a classifier; for an autoencoder
        `hidden_mse` of video, also with the prefixes `sound/` and `silent/`, under masks that are the same for every
        degradation and for systems with the same patches.

    Raises:
        InputError: too many clips cannot be read, of which some are named.
    """
    model.to(inference.device)
    conditions = [None, *degradations]
    scores: list[Any] = [
        (ClipScores(len(datamodule.splits.test), model.classes) if isinstance(model, Classifier) else _MaskedError())
        for _ in conditions
    ]
    alone: set[int] = set()
    for score in scores:
        score.to(inference.device)
    for sample, clean in inference.batches(datamodule, "test", any(d.kind == "swap" for d in degradations)):
        if "has_other" in sample:
            without = sample["has_audio"] & ~sample["has_other"] & (sample["clip_id"] >= 0)
            alone.update(sample["clip_id"][without].tolist())
        for condition, score in zip(conditions, scores, strict=True):
            batch: Batch = clean if condition is None else datamodule.transform(sample, condition)
            with inference.autocast():
                if isinstance(model, Classifier):
                    # Whether a clip counts as sounding is what its file says, whatever was done to it.
                    score.update(model(batch), {**batch, "has_audio": clean["has_audio"]})
                else:
                    score.update_with(model, batch, clean)
        if embedder is not None:
            with inference.autocast():
                embedder.update(model, clean)
    if alone:
        print(
            f"warning: {len(alone)} clips with sound were tested in silence for swap: there is no clip with sound of "
            "another class",
            file=sys.stderr,
        )
    return [score.compute() for score in scores]


def score_degraded(
    model: MaskedAutoencoder | Classifier,
    datamodule: ClipDataModule,
    degradations: Sequence[Degradation],
    inference: Inference | None = None,
) -> list[Row]:
    """Rows of what `measure` finds, the clean ones first."""
    return degraded_rows(degradations, measure(model, datamodule, degradations, inference or Inference()))


def degraded_rows(degradations: Sequence[Degradation], found: Sequence[dict[str, Any]]) -> list[Row]:
    """`top1` and `top5`, or `hidden_mse`, by condition and subset, from `measure`."""
    rows = []
    for condition, figures in zip([None, *degradations], found, strict=True):
        kind, severity = ("clean", 0.0) if condition is None else (condition.kind, condition.severity)
        severity = severity if SEVERITIES.get(kind) or kind == "clean" else 1.0
        for name, value in figures.items():
            *subset, metric = name.split("/")
            if metric in ("top1", "top5", "hidden_mse"):
                row = {"degradation": kind, "severity": severity, "subset": subset[0] if subset else "all"}
                rows.append({**row, "metric": metric, "value": float(value)})
    return rows


def condition_name(kind: str, severity: float) -> str:
    """How a row's condition is called in tables."""
    return f"{kind} {severity:g}" if SEVERITIES.get(kind) else kind
