"""What a model makes of degraded video and audio, everything tested on the same decoded windows."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from avmae.data.datamodule import Batch, ClipDataModule
from avmae.data.degrade import OF_OTHERS, SEVERITIES, Degradation
from avmae.evaluation.batches import Inference
from avmae.evaluation.embedding import Embedder
from avmae.evaluation.scores import ClipMeans, scores_of
from avmae.models.autoencoder import MaskedAutoencoder, normalize_patches
from avmae.models.classifier import Classifier
from avmae.models.masking import Mask
from avmae.models.tokens import gather_tokens

Row = dict[str, Any]
"""`degradation` (its kind, or clean), `severity` (1 for kinds that have none), `subset` (all, sound or silent clips),
`metric` and `value`."""


MOVING = 0.08
"""Root mean square by which the pixels of a patch that moves differ from the median over the clip's times at its place,
as a share of the range from black to white: above what noise and a shaking hand do."""


def masked_errors(model: MaskedAutoencoder, batch: Batch, clean: Batch) -> dict[str, Tensor]:
    """Mean squared errors (B,) of masked patches of `clean` video, predicted from `batch`, in the units of training.

    `hidden_mse` is of all of them, `moving_mse` of those whose pixels move; nan where none does.
    """
    masks = draw_by_view(model, clean)
    prediction = model(batch, masks).predictions["video"].float()
    patches = model.encoder.patchify(clean)["video"]
    target = gather_tokens(patches, masks["video"].masked)
    if model.normalize_target:
        target, _, _ = normalize_patches(target)
    clips = len(clean["clip_id"])
    errors = (prediction - target).square().mean((2, 3), dtype=torch.float64).reshape(clips, -1)
    moving = gather_tokens(moves(model, patches, clips), masks["video"].masked).reshape(clips, -1)
    return {"hidden_mse": errors.mean(1), "moving_mse": (errors * moving).sum(1) / moving.sum(1)}


def moves(model: MaskedAutoencoder, patches: Tensor, clips: int) -> Tensor:
    """Which patches (B, N, P, C) of normalised video move; see `MOVING`: (B, N) bool."""
    pixels = patches * patches.new_tensor(model.clip.pixel_std)
    grid = model.encoder.modalities["video"].grid
    by_time = pixels.reshape(clips, grid.stack * grid.size[0], -1, *pixels.shape[2:])
    still = by_time.median(1, keepdim=True).values
    return ((by_time - still).square().mean((3, 4)).sqrt() > MOVING).reshape(patches.shape[:2])


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
    clips, alone = len(datamodule.splits.test), dict[str, set[int]]()
    scores: list[Any] = [
        scores_of(model, clips).to(inference.device) if isinstance(model, Classifier) else ClipMeans()
        for _ in conditions
    ]
    partners = list(dict.fromkeys(c.kind for c in conditions if c and c.kind in OF_OTHERS))
    for sample, clean in inference.batches(datamodule, "test", partners):
        for kind, (_, found) in sample.get("others", {}).items():
            without = sample["has_audio"] & ~found & (sample["clip_id"] >= 0)
            alone.setdefault(kind, set()).update(sample["clip_id"][without].tolist())
        for condition, score in zip(conditions, scores, strict=True):
            batch: Batch = clean if condition is None else datamodule.transform(sample, condition)
            with inference.autocast(model.encoder.dim):
                found = model(batch) if isinstance(model, Classifier) else masked_errors(model, batch, clean)
            # Whether a clip counts as one with audio is what its file says, whatever was done to it.
            score.update(found, clean)
        if embedder is not None:
            with inference.autocast(model.encoder.dim):
                embedder.update(model, clean)
    for kind, numbers in alone.items():
        if numbers:
            of = "another class" if kind == "swap" else "their class and group"
            print(
                f"warning: {len(numbers)} clips with audio were tested in silence for {kind}: there is no other clip "
                f"with audio of {of}",
                file=sys.stderr,
            )
    return [score.compute() for score in scores]


def degraded_rows(conditions: Sequence[Degradation | None], found: Sequence[dict[str, Any]]) -> list[Row]:
    """`top1` and `top5`, or `mAP`, or the means of `masked_errors`, by condition and subset, from `measure`."""
    rows = []
    for condition, figures in zip(conditions, found, strict=True):
        kind, severity = ("clean", 0.0) if condition is None else (condition.kind, condition.severity)
        severity = severity if SEVERITIES.get(kind) or kind == "clean" else 1.0
        for name, value in figures.items():
            subset, _, metric = name.rpartition("/")
            if metric in ("top1", "top5", "mAP") or metric.endswith("_mse"):
                row = {"degradation": kind, "severity": severity, "subset": subset or "all"}
                rows.append({**row, "metric": metric, "value": float(value)})
    return rows


def condition_name(kind: str, severity: float) -> str:
    """How a row's condition is called in tables."""
    return f"{kind} {severity:g}" if SEVERITIES.get(kind) else kind
