"""Weights from files, ours and others'. Nothing is unpickled but tensors and plain data."""

import argparse
import errno
import json
import math
import pathlib
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from avmae.clip import ClipSpec
from avmae.errors import InputError
from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.build import build_from_config
from avmae.models.classifier import Classifier
from avmae.models.describe import describe
from avmae.models.fit import fit
from avmae.models.hub import fetch, on_hub
from avmae.models.layouts import rename
from avmae.runs.folder import SHARDED

CONTAINERS = ("module", "model", "state_dict")
"""Keys under which DeepSpeed, VideoMAE and others keep the weights."""
MODEL = "model."
"""What the model's names in a sharded checkpoint start with; see `FSDP2Strategy`."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file or folder holds for a model.

    Args:
        path: of the file or folder.
        layout: `avmae`, or the name of a foreign one.
        config: plain data: clip, model, size, task, and what the task needs.
        weights: by name in the network.
        unexpected: names in the file that have no place in any network of ours.
        heads_stated: the file says how many heads a block has, which its tensors do not tell.
    """

    path: Path
    layout: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    unexpected: list[str] = field(default_factory=list)
    heads_stated: bool = True


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of ours, an exported folder, or one of the foreign layouts of `avmae.models.layouts`.

    ``hf://ORG/NAME`` is such a folder on the Hugging Face Hub; see `avmae.models.hub.fetch`.

    What it is follows from the content: a folder with ``config.json`` and ``model.safetensors`` (or, of transformers,
    ``pytorch_model.bin``), a folder of shards, a safetensors file, or a file of ``torch.save`` with the weights on top
    or under ``model``, ``module`` or ``state_dict``.

    Raises:
        InputError: the file is missing, is no checkpoint, would run code, or has no layout that is known.
    """
    path = fetch(path) if on_hub(path) else Path(path).expanduser()
    if path.is_dir() and not (path / SHARDED).is_file():
        return _read_folder(path)
    if not path.is_dir() and not path.is_file():
        raise InputError(
            f"ckpt={path} does not exist; give the path of a checkpoint, such as logs/NAME/TIME/checkpoints/last.ckpt"
        )
    state = _read_shards(path) if path.is_dir() else _read_file(path)
    if all(isinstance(state.get(key), Mapping) for key in ("config", "state_dict")) and "task" in state["config"]:
        prefix = "network."
        weights = {k.removeprefix(prefix): v for k, v in state["state_dict"].items() if k.startswith(prefix)}
        return Checkpoint(path, "avmae", dict(state["config"]), weights)
    for key in CONTAINERS:
        if isinstance(state.get(key), Mapping):
            state = state[key]
            break
    return _foreign(path, state)


def write_safetensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file that is whole or not there, with the rights that a new file gets.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.touch()
        # The library's own file could be read by its owner alone.
        mode = temporary.stat().st_mode
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error), str(path)) from error
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_folder(path: Path) -> Checkpoint:
    files = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()]
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        config = None
    except ValueError as error:
        raise InputError(f"{path / 'config.json'} is damaged: {error}") from error
    if not isinstance(config, dict) or not files:
        raise InputError(
            f"ckpt={path} is a folder without config.json and model.safetensors; give an exported folder, one of "
            "transformers' VideoMAE, or a checkpoint file"
        )
    kind = config.get("model_type", "videomae")
    if kind != "videomae" and "avmae" not in config:
        raise InputError(f"{path} holds a {kind} of transformers; of its models avmae reads videomae")
    act, sides = config.get("hidden_act", "gelu"), config.get("image_size", 224)
    if act != "gelu":
        raise InputError(f"{path} has hidden_act={act}, but avmae's blocks have gelu; give a model with gelu")
    if isinstance(sides, list) and len(set(sides)) > 1:
        raise InputError(f"{path} has image_size={sides}, but avmae's frames are square; give a model of square ones")
    weights = _read_file(files[0])
    if "avmae" not in config:
        return _foreign(path, weights, config)
    if not any(name.startswith("encoder.modalities.") for name in weights):
        # Exported under transformers' names, which say less than the config of ours beside them.
        weights = rename(weights, str(path)).weights
    return Checkpoint(path, "avmae", config["avmae"], dict(weights))


def shards_of(path: Path) -> tuple[Mapping[str, Any], Path]:
    """What a folder of shards says beside its tensors, and the subfolder of these.

    Raises:
        InputError: it is damaged, or names a subfolder elsewhere.
    """
    state = _read_file(path / SHARDED)
    name = state.get("shards")
    if not isinstance(name, str) or Path(name).name != name or not any((path / name).glob("*.safetensors")):
        raise InputError(f"{path} is a damaged checkpoint: {SHARDED} names no subfolder of it with shards")
    return state, path / name


def _read_shards(path: Path) -> Mapping[str, Any]:
    """A folder of shards as the whole checkpoint it was made of, without the optimiser's tensors."""
    state, shards = shards_of(path)
    try:
        reader = dcp.HuggingFaceStorageReader(str(shards))
        described: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
        tensors = {
            name: torch.empty(tensor.size, dtype=tensor.properties.dtype)
            for name, tensor in described.items()
            if name.startswith(MODEL)
        }
        with warnings.catch_warnings():
            # That there is one process.
            warnings.simplefilter("ignore", UserWarning)
            dcp.load(tensors, storage_reader=reader, no_dist=True)
    except Exception as error:  # dcp gathers whatever went wrong on any process.
        raise InputError(f"{path} is a damaged checkpoint: {str(error).splitlines()[-1]}") from error
    return {**state, "state_dict": {name.removeprefix(MODEL): value for name, value in tensors.items()}}


def _read_file(path: Path) -> Mapping[str, Any]:
    with path.open("rb") as stream:
        head = stream.read(9)
    try:
        if head[8:] == b"{":
            return load_file(path)
        # Official VideoMAE's files carry the arguments they were trained with.
        with torch.serialization.safe_globals([argparse.Namespace, pathlib.PosixPath]):
            # Copied on write, so that a large file is not read twice; the legacy format cannot be mapped.
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # Of bytes that are no pickle, torch's unpickler raises whatever it stumbles over.
        # torch's first line is the fact; what follows advises to load it unsafely.
        reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        raise InputError(f"{path} is not a checkpoint that can be read safely: {reason}") from error
    if not isinstance(state, Mapping):
        raise InputError(f"{path} is not a checkpoint: it holds a {type(state).__name__}, not tensors by name")
    return state


def _foreign(path: Path, state: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> Checkpoint:
    renamed = rename(state, str(path), config)
    description = describe(renamed, config)
    if "video_patch" in description["model"]:
        description["clip"] |= _pixel_statistics(path, config)
    if config and not config.get("norm_pix_loss", True) and "decoders.video.head.weight" in renamed.weights:
        # transformers then predicts pixels in [0, 1], and we pixels as they come in.
        clip, head = ClipSpec(**description["clip"]), "decoders.video.head"
        mean, std = (
            torch.tensor(x).repeat(math.prod(description["model"]["video_patch"]))
            for x in (clip.pixel_mean, clip.pixel_std)
        )
        renamed.weights[f"{head}.weight"] = renamed.weights[f"{head}.weight"] / std[:, None]
        renamed.weights[f"{head}.bias"] = (renamed.weights[f"{head}.bias"] - mean) / std
    stated = "num_attention_heads" in (config or {})
    return Checkpoint(path, renamed.layout, description, renamed.weights, renamed.unexpected, stated)


def _pixel_statistics(path: Path, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """By what a folder says that pixels are normalised: timm's in its config, transformers' beside it."""
    stated = (config or {}).get("pretrained_cfg", {})
    mean, std = stated.get("mean"), stated.get("std")
    processor = path / "preprocessor_config.json"
    if processor.is_file():
        try:
            stated = json.loads(processor.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{processor} is damaged: {error}") from error
        mean, std = stated.get("image_mean"), stated.get("image_std")
        if not stated.get("do_normalize", True):
            mean, std = (0.0,) * 3, (1.0,) * 3
    return {"pixel_mean": mean, "pixel_std": std} if mean and std else {}


def load_model(path: str | Path) -> MaskedAutoencoder | Classifier:
    """Build the model that a checkpoint describes, with its weights; see `load_with_config`."""
    return load_with_config(path)[0]


def load_with_config(path: str | Path) -> tuple[MaskedAutoencoder | Classifier, dict[str, Any]]:
    """Build the model that a checkpoint describes, with its weights, in evaluation mode on the CPU; and its config.

    Args:
        path: anything that `read_checkpoint` reads and that holds a whole model.

    Raises:
        InputError: see `read_checkpoint`; or the file holds an encoder alone, or a model with more than ours have; or
            the weights do not fit.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.config["task"] == "encoder":
        raise InputError(
            f"{path} ({checkpoint.layout}) holds an encoder without a decoder or a head on the mean token as avmae has "
            f"them; train from it: python -m avmae.train ckpt={path}"
        )
    if checkpoint.unexpected:
        raise InputError(
            f"{path} ({checkpoint.layout}) has {', '.join(checkpoint.unexpected[:3])}, for which avmae's models have "
            f"no place, so they would compute something else; train from it: python -m avmae.train ckpt={path}"
        )
    model = build_from_config(checkpoint.config)
    own = model.state_dict()
    weights = {name: fit(name, value, model) for name, value in checkpoint.weights.items()}
    wrong = [f"{name} is missing" for name in own if name not in weights and not name.endswith(".positions")]
    for name, value in weights.items():
        if name not in own:
            wrong.append(f"{name} has no place")
        elif own[name].shape != value.shape:
            wrong.append(f"{name} has shape {tuple(value.shape)}, not {tuple(own[name].shape)}")
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(
            f"{path} does not fit its own description in this version of avmae: {', '.join(wrong[:3])}{more}"
        )
    model.load_state_dict(weights, strict=False)
    return model.eval(), checkpoint.config
