"""Checkpoints as this project and others write them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from systems import MASK, SIZE, SYSTEMS
from torch import Tensor, nn

from avmae.models.classifier import Classifier

OTHER_SIZE = dataclasses.replace(SIZE, name="wider", dim=32)


def config_of(network: nn.Module, system: str) -> dict[str, Any]:
    config = {
        "clip": dataclasses.asdict(network.clip),
        "model": dataclasses.asdict(SYSTEMS[system]),
        "size": dataclasses.asdict(OTHER_SIZE if network.encoder.dim == OTHER_SIZE.dim else SIZE),
        "seed": 0,
    }
    if isinstance(network, Classifier):
        names = [f"class {label}" for label in range(network.classes)]
        config |= {"task": "classify", "classes": network.classes, "dropout": 0.0, "class_names": names}
    else:
        config |= {"task": "pretrain", "mask": dataclasses.asdict(MASK)}
    # Configs come from YAML: lists, no tuples.
    return json.loads(json.dumps(config))


def save(path: Path, network: nn.Module, system: str = "avmae", **other: Any) -> Path:
    """Write a file as Lightning does."""
    weights = {f"network.{key}": value for key, value in network.state_dict().items()}
    content = {"epoch": 1, "pytorch-lightning_version": "2.6.0", "state_dict": weights, "optimizer_states": []}
    torch.save(content | {"config": config_of(network, system)} | other, path)
    return path


def official(network: nn.Module) -> dict[str, Tensor]:
    """The weights of a `videomae` as official VideoMAE names them."""
    pretraining = not isinstance(network, Classifier)
    stem = "encoder." if pretraining else ""
    names = {
        "encoder.modalities.video.embed.": f"{stem}patch_embed.proj.",
        "encoder.modalities.video.blocks.": f"{stem}blocks.",
        "decoders.video.encoder_norm.": "encoder.norm.",
        "decoders.video.project.": "encoder_to_decoder.",
        "decoders.video.mask_token": "mask_token",
        "decoders.video.": "decoder.",
        "norms.video.": "fc_norm.",
        "heads.video.": "head.",
    }
    patch = network.encoder.modalities["video"].grid.patch
    theirs = {}
    for name, value in network.state_dict().items():
        if name.endswith(".positions"):
            continue
        ours = next(ours for ours in names if name.startswith(ours))
        if name.endswith("embed.weight"):
            value = value.reshape(-1, *patch, 3).permute(0, 4, 1, 2, 3)
        elif name.endswith("mask_token"):
            value = value.reshape(1, 1, -1)
        theirs[name.replace(ours, names[ours], 1)] = value.clone()
    return theirs
