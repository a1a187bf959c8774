"""What the commands do with single videos: load by kind, reconstruct one window, rank its classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from avmae.data.decode.frames import Frames
from avmae.errors import InputError
from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.classifier import Classifier
from avmae.models.masking import Mask
from avmae.models.tokens import gather_tokens, scatter_tokens
from avmae.models.weights import load_model, read_checkpoint

Statistics = Literal["true", "visible"]

VIEWS: dict[Statistics, str] = {
    "true": "with true patch statistics",
    "visible": "from visible patches alone",
}
"""How `MaskedAutoencoder.fill` completes patches that were predicted up to mean and deviation."""


def load_autoencoder(path: str | Path) -> tuple[MaskedAutoencoder, dict[str, Any]]:
    """The model of a pretraining checkpoint, and its config.

    Raises:
        InputError: it cannot be read, or is a classifier.
    """
    model = load_model(path)
    if not isinstance(model, MaskedAutoencoder):
        raise InputError(f"{path} is a classifier, which has no decoder; give the checkpoint it was fine-tuned from")
    return model, dict(read_checkpoint(path).config)


def load_classifier(path: str | Path) -> tuple[Classifier, dict[str, Any]]:
    """The model of a fine-tuned checkpoint, and its config.

    Raises:
        InputError: it cannot be read, or is an autoencoder.
    """
    model = load_model(path)
    if not isinstance(model, Classifier):
        raise InputError(
            f"{path} is a pretraining checkpoint and knows no classes; fine-tune it first: "
            "python -m avmae.train experiment=finetune_ucf101 ckpt=..."
        )
    return model, dict(read_checkpoint(path).config)


@dataclass(frozen=True)
class Reconstructed:
    """What a model makes of one window.

    Args:
        masked: by modality (1, C, *shape), NaN where hidden.
        whole: by statistics and modality (1, C, *shape); see `MaskedAutoencoder.fill`. A model trained on plain targets
            has one entry, `true`.
        losses: by modality, the mean squared error over hidden patches in the units of the target.
    """

    masked: dict[str, Tensor]
    whole: dict[Statistics, dict[str, Tensor]]
    losses: dict[str, float]


def reconstruct_window(model: MaskedAutoencoder, batch: Mapping[str, Any], seed: int) -> Reconstructed:
    """Hide most of one clip and reconstruct it.

    Args:
        model: in evaluation mode, on any device.
        batch: of one clip, on the CPU.
        seed: of the masks.
    """
    parameter = next(model.parameters())
    device = parameter.device
    masks = model.draw_masks(1, torch.Generator().manual_seed(seed))
    patches = model.encoder.patchify(batch)
    floats = {name: batch[name].to(device, parameter.dtype) for name in ("video", "audio") if name in batch}
    inputs = {**floats, "has_audio": batch["has_audio"].to(device)}
    # Not inference mode, under which sharded weights cannot be gathered.
    with torch.no_grad():
        result = model(inputs, {name: Mask(*(index.to(device) for index in mask)) for name, mask in masks.items()})
    masked = {}
    for name, decoder in model.decoders.items():
        mask = masks[name]
        seen = gather_tokens(patches[name], mask.visible)
        nothing = torch.full_like(gather_tokens(patches[name], mask.hidden), float("nan"))
        tokens = scatter_tokens([(seen, mask.visible), (nothing, mask.hidden)])
        masked[name] = decoder.grid.unpatchify(tokens)
    predictions = {name: prediction.float().cpu() for name, prediction in result.predictions.items()}
    views = [view for view in VIEWS if model.normalize_target or view == "true"]
    whole = {view: model.fill(batch, masks, predictions, view) for view in views}
    return Reconstructed(masked, whole, {name: loss.mean().item() for name, loss in result.losses.items()})


def picture_figures(frames: Frames, truth: Frames, hidden: Tensor) -> dict[str, float]:
    """PSNR and SSIM over hidden pixels.

    Args:
        frames: (T, H, W, 3) uint8 array.
        truth: of the same kind.
        hidden: (3, T, H, W) bool tensor.
    """
    ours, theirs = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 for x in (frames, truth))
    where = hidden.transpose(0, 1)
    _, similarity = structural_similarity_index_measure(ours, theirs, data_range=1.0, return_full_image=True)
    return {
        "psnr_hidden": -10 * (ours - theirs)[where].square().mean().clamp(min=1e-10).log10().item(),
        "ssim_hidden": similarity[where].mean().item(),
    }


def top_classes(probabilities: Tensor, names: list[str], count: int) -> list[dict[str, Any]]:
    """The most probable of (classes,) probabilities, as ``class``, ``label`` and ``score``, best first."""
    scores, labels = probabilities.topk(min(count, len(probabilities)))
    return [
        {"class": names[label], "label": label, "score": score}
        for score, label in zip(scores.tolist(), labels.tolist(), strict=True)
    ]
