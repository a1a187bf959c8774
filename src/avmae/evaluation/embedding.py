"""Clips to vectors, nothing hidden: what features, k-NN and retrieval are made of."""

from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from avmae.data.datamodule import ClipDataModule
from avmae.errors import InputError
from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.classifier import Classifier


@dataclass(frozen=True)
class Embeddings:
    """Of N clips, on the CPU.

    Args:
        fused: (N, modalities x dim) float32, the mean token of each modality after fusion, one behind the other.
        apart: by modality (N, dim) float32, the mean token before fusion.
        has_audio: (N,) bool, whether any window had sound.
        scored: (N,) bool, False for clips that could not be read.
    """

    fused: Tensor
    apart: dict[str, Tensor]
    has_audio: Tensor
    scored: Tensor


def choose_device(accelerator: str) -> torch.device:
    """A GPU where there is one, unless the accelerator is `cpu`."""
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a network that is only tested computes.

    Args:
        device: of the network.
        precision: `bf16-mixed` or `32-true`, as Lightning names them.

    Raises:
        InputError: another precision.
    """
    if precision not in ("bf16-mixed", "32-true"):
        raise InputError(f"precision={precision} is not for tests; choose auto, bf16-mixed or 32-true")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")


def embed(
    model: MaskedAutoencoder | Classifier,
    datamodule: ClipDataModule,
    part: str,
    max_unreadable: float = 0.05,
    accelerator: str = "auto",
    precision: str = "32-true",
) -> Embeddings:
    """Embed the clips of one part, averaged over the data module's segments x crops.

    Args:
        model: in evaluation mode.
        datamodule: of the data set.
        part: `train`, `val` or `test`.
        max_unreadable: largest share of clips that may be unreadable.
        accelerator: see `choose_device`.
        precision: see `autocast`.

    Raises:
        InputError: too many clips cannot be read, of which some are named; or a precision that is none.
    """
    device = choose_device(accelerator)
    encoder, transform = model.encoder.to(device), datamodule.transform.to(device)
    loader, clips = datamodule.part_loader(part), len(getattr(datamodule.splits, part))
    sums: dict[str, Tensor] = {}
    views, has_audio = torch.zeros(clips, device=device), torch.zeros(clips, device=device)
    messages: set[str] = set()
    with torch.inference_mode(), autocast(device, precision):
        for sample in track(loader, f"Embedding {part}", console=Console(stderr=True)):
            batch = transform(datamodule.transfer_batch_to_device(sample, device, 0))
            messages.update(batch["unreadable"])
            rows = batch["label"].shape[0]
            apart = encoder.encode_apart(encoder.patchify(batch), {"audio": batch["has_audio"]})
            pooled = encoder.pool(apart, rows)
            pooled["fused"] = torch.cat(list(encoder.pool(encoder.fusion(apart), rows).values()), 1)
            scored, clip_id = (batch["clip_id"] >= 0).float(), batch["clip_id"].clamp(min=0)
            views.index_add_(0, clip_id, scored)
            has_audio.index_add_(0, clip_id, scored * batch["has_audio"])
            for name, value in pooled.items():
                total = sums.setdefault(name, value.new_zeros(clips, value.shape[1], dtype=torch.float32))
                total.index_add_(0, clip_id, value.float() * scored[:, None])
    refuse_unreadable(messages, clips, part, max_unreadable)
    means = {name: (total / views.clamp(min=1)[:, None]).cpu() for name, total in sums.items()}
    fused = means.pop("fused")
    return Embeddings(fused, means, (has_audio > 0).cpu(), (views > 0).cpu())


def refuse_unreadable(messages: set[str], clips: int, part: str, max_unreadable: float) -> None:
    """Raise an InputError that names some of the clips, if too large a share of a part could not be read."""
    if len(messages) > max_unreadable * clips:
        raise InputError(
            f"{len(messages)} of {clips} clips of the {part} part cannot be read, more than "
            f"max_unreadable={max_unreadable:g}; for example:\n  " + "\n  ".join(sorted(messages)[:5])
        )
