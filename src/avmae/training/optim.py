"""AdamW or Muon with the field's parameter groups, and a cosine schedule per step."""

import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.optim import Muon, muon

from avmae.errors import InputError
from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.classifier import Classifier

REFERENCE_BATCH = 256
LAYER = re.compile(r"encoder\.modalities\.(\w+)\.(?:blocks\.(\d+)\.|embed\.|absent$)")
"""Names of what lies in a modality's encoder: its blocks by number, and what makes its tokens."""
QUERIES = re.compile(r"poolings\.\w+\.latent$")
"""The tokens that are not known by their one axis: the queries of attention pooling."""


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
        layer_decay: factor from each layer to the one below (BEiT), for parameters that were loaded; 1 for none.
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


class FullPrecisionMuon(Muon):
    """timm's Muon with its steps orthogonalised in float32.

    timm computes them in bf16 and has no setting for it. Processors without bf16 emulate it, 60 times slower.
    """

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """As of any optimiser of torch."""
        in_bf16 = muon.zeropower_via_newtonschulz
        muon.zeropower_via_newtonschulz = partial(in_bf16, dtype=torch.float32)
        try:
            return super().step(closure)
        finally:
            muon.zeropower_via_newtonschulz = in_bf16


def parameter_groups(
    network: MaskedAutoencoder | Classifier, spec: OptimSpec, lr: float, loaded: Collection[str] = ()
) -> list[dict[str, Any]]:
    """What is trained, in groups of one learning rate and one weight decay.

    A loaded parameter has ``lr x layer_decay ** n``, n being the number of layers above it in the encoder of its own
    modality, plus 1: 1 for the top block, the encoder's depth + 1 for the patch embedding (BEiT, official VideoMAE).
    Fusion, decoders and heads, and all that starts fresh, have ``lr``: what is new has the furthest to go.

    Args:
        network: of which frozen parameters are left out.
        spec: the recipe's.
        lr: of a step.
        loaded: names of the parameters that came from weights.
    """
    depths = {name: len(encoder.blocks) for name, encoder in network.encoder.modalities.items()}
    groups: dict[tuple[int | None, int, float], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        layer, above = None, 0
        if found := LAYER.match(name):
            layer = 0 if found[2] is None else int(found[2]) + 1
            above = depths[found[1]] + 1 - layer if name in loaded else 0
        decay = 0.0 if parameter.ndim <= 1 or QUERIES.match(name) else spec.weight_decay
        # By layer even where the rate is one, for so they lie in older checkpoints, which do not say what was loaded;
        # the rates of a resumed run are its checkpoint's.
        group = {"params": [], "lr": lr * spec.layer_decay**above, "weight_decay": decay}
        groups.setdefault((layer, above, decay), group)["params"].append(parameter)
    return list(groups.values())


def build_optimizer(
    network: MaskedAutoencoder | Classifier,
    spec: OptimSpec,
    effective_batch: int,
    loaded: Collection[str] = (),
) -> torch.optim.Optimizer:
    """The optimiser of a network, AdamW as one kernel for all parameters, sharded ones too.

    Args:
        network: autoencoder or classifier.
        spec: the recipe's.
        effective_batch: clips a step over all processes and accumulated batches.
        loaded: see `parameter_groups`.
    """
    lr = spec.base_lr * effective_batch / REFERENCE_BATCH
    groups = parameter_groups(network, spec, lr, loaded)
    if spec.kind == "muon":
        emulated = groups[0]["params"][0].device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return (FullPrecisionMuon if emulated else Muon)(groups, lr=lr, betas=spec.betas)
    return torch.optim.AdamW(groups, lr=lr, betas=spec.betas, fused=True)


def warmup_cosine(spec: OptimSpec, steps: int) -> Callable[[int], float]:
    """Factor of the learning rate by step: linear up to 1 over the warm-up, half a cosine down to min_lr after it."""
    warmup = int(spec.warmup * steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return spec.min_lr + (1 - spec.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor
