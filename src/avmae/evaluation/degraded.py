"""What a model makes of degraded video and audio, everything tested on the same decoded windows."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from avmae.data.datamodule import Batch, ClipDataModule
from avmae.data.degrade import SEVERITIES, Degradation
from avmae.evaluation.batches import Inference
from avmae.evaluation.embedding import Embedder
from avmae.evaluation.scores import ClipMeans, ClipScores
from avmae.models.autoencoder import MaskedAutoencoder, normalize_patches
from avmae.models.classifier import Classifier
from avmae.models.masking import Mask
from avmae.models.tokens import gather_tokens

Row = dict[str, Any]
"""`degradation` (its kind, or clean), `severity` (1 for kinds that have none), `subset` (all, sound or silent clips),
`metric` and `value`."""


def masked_errors(model: MaskedAutoencoder, batch: Batch, clean: Batch) -> dict[str, Tensor]:
    """Mean squared errors (B,) of masked patches of `clean` video, predicted from `batch`, in the units of training."""
    masks = draw_by_view(model, clean)
    prediction = model(batch, masks).predictions["video"].float()
    target = gather_tokens(model.encoder.patchify(clean)["video"], masks["video"].masked)
    if model.normalize_target:
        target, _, _ = normalize_patches(target)
    errors = (prediction - target).square()
    return {"hidden_mse": errors.reshape(len(clean["clip_id"]), -1).mean(1, dtype=torch.float64)}


def draw_by_view(model: MaskedAutoencoder, batch: Batch) -> dict[str, Mask]:
    """Masks that are a function of each clip's number and view, whatever else is in the batch."""
    generator = torch.Generator(batch["video"].device)
    drawn = [
        model.draw_masks(1, generator.manual_seed(1000 * clip + view))
        for clip, view in zip(batch["clip_id"].clamp(min=0).tolist(), batch["view"].tolist(), strict=True)
    ]
    return {name: Mask(*map(torch.cat, zip(*(masks[name] for masks in drawn), strict=True))) for name in drawn[0]}


@torch.inference_mode()
def measure(
    model: MaskedAutoencoder | Classifier,
    datamodule: ClipDataModule,
    conditions: Sequence[Degradation | None],
    inference: Inference,
    embedder: Embedder | None = None,
) -> list[dict[str, Any]]:
    """Test a model on test clips under each condition, None for clean, in one pass; the embedder gets them clean.

    Returns:
        Of each condition what `ClipScores` finds for a classifier; for an autoencoder what
        `ClipMeans` finds of its `masked_errors`, under masks that are the same for every condition and for systems
        with the same patches.

    Raises:
        InputError: too many clips cannot be read, of which some are named.
    """
    model.to(inference.device)
    clips, alone = len(datamodule.splits.test), set[int]()
    scores: list[Any] = [
        ClipScores(clips, model.classes).to(inference.device) if isinstance(model, Classifier) else ClipMeans()
        for _ in conditions
    ]
    for sample, clean in inference.batches(datamodule, "test", any(c and c.kind == "swap" for c in conditions)):
        if "has_other" in sample:
            without = sample["has_audio"] & ~sample["has_other"] & (sample["clip_id"] >= 0)
            alone.update(sample["clip_id"][without].tolist())
        for condition, score in zip(conditions, scores, strict=True):
            batch: Batch = clean if condition is None else datamodule.transform(sample, condition)
            with inference.autocast():
                found = model(batch) if isinstance(model, Classifier) else masked_errors(model, batch, clean)
            # Whether a clip counts as one with audio is what its file says, whatever was done to it.
            score.update(found, clean)
        if embedder is not None:
            with inference.autocast():
                embedder.update(model, clean)
    if alone:
        print(
            f"warning: {len(alone)} clips with audio were tested in silence for swap: there is no clip with audio of "
            "another class",
            file=sys.stderr,
        )
    return [score.compute() for score in scores]


def degraded_rows(conditions: Sequence[Degradation | None], found: Sequence[dict[str, Any]]) -> list[Row]:
    """`top1` and `top5`, or the means of `masked_errors`, by condition and subset, from `measure`."""
    rows = []
    for condition, figures in zip(conditions, found, strict=True):
        kind, severity = ("clean", 0.0) if condition is None else (condition.kind, condition.severity)
        severity = severity if SEVERITIES.get(kind) or kind == "clean" else 1.0
        for name, value in figures.items():
            subset, _, metric = name.rpartition("/")
            if metric in ("top1", "top5") or metric.endswith("_mse"):
                row = {"degradation": kind, "severity": severity, "subset": subset or "all"}
                rows.append({**row, "metric": metric, "value": float(value)})
    return rows


def condition_name(kind: str, severity: float) -> str:
    """How a row's condition is called in tables."""
    return f"{kind} {severity:g}" if SEVERITIES.get(kind) else kind
