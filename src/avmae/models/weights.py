"""Weights from files. Nothing is unpickled but tensors and plain data."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avmae.errors import InputError
from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.build import build_from_config
from avmae.models.classifier import Classifier

MIN_MATCHED = 0.9


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint of ours holds for a model.

    Args:
        path: of the file.
        config: plain data: clip, model, size, task, and what the task needs.
        weights: by name in the network.
    """

    path: Path
    config: dict[str, Any]
    weights: dict[str, Tensor]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of ours.

    Raises:
        InputError: the file is missing, is no checkpoint, would run code, or is not ours.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(
            f"ckpt={path} is not a file; give the path of a checkpoint, such as logs/NAME/TIME/checkpoints/last.ckpt"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} is not a checkpoint that can be read safely: {reason}") from error
    if not (
        isinstance(state, Mapping) and all(isinstance(state.get(key), Mapping) for key in ("config", "state_dict"))
    ):
        raise InputError(f"{path} is not a checkpoint of avmae: it holds no config to build the model from")
    weights = {k.removeprefix("network."): v for k, v in state["state_dict"].items() if k.startswith("network.")}
    return Checkpoint(path, dict(state["config"]), weights)


def load_model(path: str | Path) -> MaskedAutoencoder | Classifier:
    """Build the model that a checkpoint describes, with its weights, in evaluation mode on the CPU.

    Raises:
        InputError: see `read_checkpoint`; or the weights do not fit the model of this version.
    """
    checkpoint = read_checkpoint(path)
    model = build_from_config(checkpoint.config)
    try:
        model.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        wrong = str(error).splitlines()[1:]
        raise InputError(
            f"{path} does not fit this version of avmae: {' '.join(map(str.strip, wrong))[:300]}"
        ) from error
    return model.eval()


def start_from(network: nn.Module, path: str | Path) -> str:
    """Copy the weights of a checkpoint into a network of the same size; a head of another shape is left.

    Of the encoder, the parts count that the file has: a `videomae` fills the pictures' part of an `avmae`.

    Args:
        network: autoencoder or classifier, changed in place.
        path: of the checkpoint.

    Returns:
        One line that says what was matched.

    Raises:
        InputError: less than 90 % of those parts is matched by name and shape; the network is unchanged then.
    """
    checkpoint = read_checkpoint(path)
    own = network.state_dict()
    matched = {k: v for k, v in checkpoint.weights.items() if k in own and own[k].shape == v.shape}
    reshaped = [k for k, v in checkpoint.weights.items() if k in own and own[k].shape != v.shape]
    parts = {_part(k) for k in checkpoint.weights}
    encoder = [k for k in own if k.startswith("encoder.") and _part(k) in parts]
    share = sum(own[k].numel() for k in encoder if k in matched) / max(1, sum(own[k].numel() for k in encoder))
    if share < MIN_MATCHED:
        shapes = (
            f", for example {k}: {tuple(checkpoint.weights[k].shape)} for {tuple(own[k].shape)}" for k in reshaped
        )
        model, size = (checkpoint.config[key]["name"] for key in ("model", "size"))
        raise InputError(
            f"{path} matches {share:.0%} of the encoder{next(shapes, '')}; "
            f"it was made with model={model} size={size}: choose the same here"
        )
    network.load_state_dict(matched, strict=False)
    unused = [k for k in checkpoint.weights if k not in own]
    new = [k for k in own if k not in matched]
    return (
        f"weights from {path}: {len(matched)} tensors matched ({share:.0%} of the encoder), "
        f"{len(new)} of the network freshly initialised, {len(unused)} of the file not used, "
        f"{len(reshaped)} of another shape"
    )


def _part(key: str) -> str:
    """`encoder.modalities.video`, `encoder.fusion` and so on."""
    return ".".join(key.split(".")[: 3 if key.startswith("encoder.modalities.") else 2])
