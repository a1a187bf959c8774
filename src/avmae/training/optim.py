"""AdamW or Muon with the field's parameter groups, and a cosine schedule per step."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from timm.optim import Muon, param_groups_layer_decay
from torch import nn

from avmae.errors import InputError

REFERENCE_BATCH = 256


@dataclass(frozen=True)
class OptimSpec:
    """The optimiser of one recipe.

    Args:
        base_lr: learning rate for 256 clips a step; the rate used is base_lr x clips a step / 256 (Goyal et al. 2017).
        kind: `adamw`; or `muon`, timm's, which orthogonalises the steps of matrices (Jordan et al. 2024) and takes
            AdamW's for all else. It costs more time a step, and small models need far fewer steps.
        weight_decay: decoupled; biases, norms and tokens are exempt.
        betas: of AdamW.
        warmup: share of all steps over which the rate rises linearly from zero.
        min_lr: final rate as a share of the highest.
        layer_decay: factor from each layer to the one below (BEiT); 1 for none.
        clip_norm: largest norm of the gradient; 0 for no clipping.

    Raises:
        InputError: a value is out of range.
    """

    base_lr: float
    kind: str = "adamw"
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: float = 0.0125
    min_lr: float = 0.0
    layer_decay: float = 1.0
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.kind not in ("adamw", "muon"):
            raise InputError(f"optim.kind={self.kind} is unknown; choose adamw or muon")
        if not (self.base_lr > 0 and 0 <= self.warmup < 1 and 0 < self.layer_decay <= 1 and self.clip_norm >= 0):
            raise InputError(
                "optim: base_lr must be positive, warmup in [0, 1), layer_decay in (0, 1], clip_norm at least 0"
            )


def build_optimizer(
    network: nn.Module, spec: OptimSpec, effective_batch: int, fused: bool = True
) -> torch.optim.Optimizer:
    """The optimiser of a network that has timm's ``group_matcher``.

    Args:
        network: autoencoder or classifier.
        spec: the recipe's.
        effective_batch: clips a step over all processes and accumulated batches.
        fused: one kernel for all parameters (AdamW).
    """
    lr = spec.base_lr * effective_batch / REFERENCE_BATCH
    # The tokens that timm does not know by their one axis: the queries of attention pooling.
    groups = param_groups_layer_decay(network, spec.weight_decay, ["poolings.*.latent"], layer_decay=spec.layer_decay)
    for group in groups:
        group["lr"] = lr * group["lr_scale"]
    if spec.kind == "muon":
        return Muon(groups, lr=lr, betas=spec.betas)
    return torch.optim.AdamW(groups, lr=lr, betas=spec.betas, fused=fused)


def warmup_cosine(spec: OptimSpec, steps: int) -> Callable[[int], float]:
    """Factor of the learning rate by step: linear up to 1 over the warm-up, half a cosine down to min_lr after it."""
    warmup = int(spec.warmup * steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return spec.min_lr + (1 - spec.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor
