"""What a model makes of poorer pictures and sound, everything tested on the same decoded windows."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from avmae.data.datamodule import Batch, ClipDataModule
from avmae.data.degrade import SEVERITIES, Degradation
from avmae.evaluation.embedding import autocast, choose_device, refuse_unreadable
from avmae.evaluation.scores import ClipScores
from avmae.models.autoencoder import MaskedAutoencoder, normalize_patches
from avmae.models.classifier import Classifier
from avmae.models.masking import Mask
from avmae.models.tokens import gather_tokens

Row = dict[str, Any]
"""`degradation` (its kind, or clean), `severity` (1 for kinds that have none), `subset` (all, sound or silent clips),
`metric` and `value`."""


class _HiddenError(nn.Module):
    """Mean squared error of hidden picture patches, of all clips and of those with and without sound.

    The model sees degraded patches and has to predict clean ones, in the units of its training.
    """

    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        # What audio changes early in training is lost in the rounding of a float32 sum.
        self.register_buffer("sums", torch.zeros(2, 2, dtype=torch.float64))

    def update(self, model: MaskedAutoencoder, batch: Batch, clean: Batch) -> None:
        clips = clean["label"].shape[0]
        masks = draw_by_view(model, clean)
        prediction = model(batch, masks).predictions["video"].float()
        target = gather_tokens(model.encoder.patchify(clean)["video"], masks["video"].hidden)
        if model.normalize_target:
            target, _, _ = normalize_patches(target)
        error = (prediction - target).square().reshape(clips, -1).mean(1, dtype=torch.float64)
        scored = (clean["clip_id"] >= 0).double()
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
        name: Mask(torch.cat([masks[name].visible for masks in drawn]), torch.cat([m[name].hidden for m in drawn]))
        for name in drawn[0]
    }


@torch.inference_mode()
def score_degraded(
    model: MaskedAutoencoder | Classifier,
    datamodule: ClipDataModule,
    degradations: Sequence[Degradation],
    max_unreadable: float = 0.05,
    accelerator: str = "auto",
    precision: str = "32-true",
) -> list[Row]:
    """Test a model on clean test clips and on each degradation of them.

    Args:
        model: in evaluation mode; a classifier is scored by `top1` and `top5` by clip, an autoencoder by `hidden_mse`
            of pictures under masks that are the same for every degradation and for systems with the same patches.
        datamodule: its test clips, segments and crops.
        degradations: each scored by itself.
        max_unreadable: largest share of clips that may be unreadable.
        accelerator: see `choose_device`.
        precision: see `autocast`.

    Returns:
        Rows, the clean ones first. Whether a clip counts as sounding is what its file says, whatever was done to it.

    Raises:
        InputError: too many clips cannot be read, of which some are named; or a precision that is none.
    """
    device = choose_device(accelerator)
    model.to(device)
    transform, clips = datamodule.transform.to(device), len(datamodule.splits.test)
    conditions = [None, *degradations]
    if isinstance(model, Classifier):
        scores: list[Any] = [ClipScores(clips, model.classes).to(device) for _ in conditions]
    else:
        scores = [_HiddenError().to(device) for _ in conditions]
    messages: set[str] = set()
    alone: set[int] = set()
    loader = datamodule.part_loader("test", partners=any(d.kind == "swap" for d in degradations))
    for sample in track(loader, "Degrading test clips", console=Console(stderr=True)):
        sample = datamodule.transfer_batch_to_device(sample, device, 0)
        clean = transform(sample)
        if "has_other" in sample:
            without = sample["has_audio"] & ~sample["has_other"] & (sample["clip_id"] >= 0)
            alone.update(sample["clip_id"][without].tolist())
        messages.update(clean["unreadable"])
        for condition, score in zip(conditions, scores, strict=True):
            batch: Batch = clean if condition is None else transform(sample, condition)
            with autocast(device, precision):
                if isinstance(model, Classifier):
                    score.update(model(batch), {**batch, "has_audio": clean["has_audio"]})
                else:
                    score.update(model, batch, clean)
    if alone:
        print(
            f"warning: {len(alone)} clips with sound were tested in silence for swap: there is no clip with sound of "
            "another class",
            file=sys.stderr,
        )
    refuse_unreadable(messages, clips, "test", max_unreadable)
    rows = []
    for condition, score in zip(conditions, scores, strict=True):
        kind, severity = ("clean", 0.0) if condition is None else (condition.kind, condition.severity)
        severity = severity if SEVERITIES.get(kind) or kind == "clean" else 1.0
        for name, value in score.compute().items():
            *subset, metric = name.split("/")
            if metric in ("top1", "top5", "hidden_mse"):
                row = {"degradation": kind, "severity": severity, "subset": subset[0] if subset else "all"}
                rows.append({**row, "metric": metric, "value": float(value)})
    return rows


def condition_name(kind: str, severity: float) -> str:
    """How a row's condition is called in tables."""
    return f"{kind} {severity:g}" if SEVERITIES.get(kind) else kind
