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
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from avmae.clip import ClipSpec
from avmae.errors import InputError
from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.build import build_from_config
from avmae.models.classifier import Classifier
from avmae.models.layouts import describe, rename
from avmae.models.tokens import Grid, grid_positions, sincos_positions
from avmae.runs.folder import SHARDED

MIN_MATCHED = 0.9
CONTAINERS = ("module", "model", "state_dict")
"""Keys under which DeepSpeed, VideoMAE and others keep the weights."""
MODEL = "model."
"""What the model's names in a sharded checkpoint start with; see `FSDP2Strategy`."""
TIME_SHARE = 0.1
"""Of the time code that is added to an image model's positions: enough to tell frames apart, while tokens stay close to
what the model has learned to read."""
AUDIOMAE_BANDS = 8
"""Of AudioMAE's tokens: 128 mel bins in patches of 16."""


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

    What it is follows from the content: a folder with ``config.json`` and ``model.safetensors`` (or, of transformers,
    ``pytorch_model.bin``), a folder of shards, a safetensors file, or a file of ``torch.save`` with the weights on top
    or under ``model``, ``module`` or ``state_dict``.

    Raises:
        InputError: the file is missing, is no checkpoint, would run code, or has no layout that is known.
    """
    path = Path(path).expanduser()
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


def load_model(path: str | Path) -> MaskedAutoencoder | Classifier:
    """Build the model that a checkpoint describes, with its weights, in evaluation mode on the CPU.

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
    weights = {name: _fit(name, value, model) for name, value in checkpoint.weights.items()}
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
    return model.eval()


@dataclass(frozen=True)
class Match:
    """How weights met a network, as `start_from` reports it.

    Args:
        title: file, layout, and the share of the encoder parts it has that was filled.
        rows: part, and numbers of tensors matched, missing in the file, unexpected in it, and of another shape.
        notes: what a user should know of single tensors.
        filled: names of the network's tensors that were.
    """

    title: str
    rows: list[tuple[str, int, int, int, int]]
    notes: list[str]
    filled: frozenset[str]


def start_from(network: MaskedAutoencoder | Classifier, path: str | Path) -> Match:
    """Copy the weights of a checkpoint into a network of the same size.

    Of the encoder, the parts count that the file has: a `videomae` fills the video part of an `avmae`. An image
    model's patch kernel is spread over the frames of a tubelet, so that a still clip gives what the image gave
    (Carreira & Zisserman 2017). Fixed position tables are recomputed for another number of frames or another size;
    learned ones are interpolated. A head for another number of classes stays as it was drawn.

    Args:
        network: autoencoder or classifier, changed in place.
        path: anything that `read_checkpoint` reads.

    Raises:
        InputError: less than 90 % of those parts is matched by name and shape, or they were trained with another number
            of heads or another kind of positions; the network is unchanged then.
    """
    checkpoint = read_checkpoint(path)
    weights = {name: _fit(name, value, network) for name, value in checkpoint.weights.items()}
    weights |= _learned_positions(checkpoint, network)
    # Where the file has no table of positions, the computed one is right.
    own = {k: v for k, v in network.state_dict().items() if k in weights or not k.endswith(".positions")}
    matched = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    reshaped = [name for name in weights if name in own and name not in matched]
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own] + checkpoint.unexpected

    parts = {_part(name) for name in weights}
    counted = [n for n in own if n.startswith("encoder.") and _part(n) in parts and not n.endswith(".positions")]
    if not counted:
        known = ", ".join(sorted(part for part in parts if part.startswith("encoder.")))
        raise InputError(
            f"{path} ({checkpoint.layout}) holds {known or 'no encoder'}, which this model does not have; "
            "choose another model, or other weights"
        )
    # Blocks that the network lacks count, too: the first half of a deeper model is no good start.
    lacking = [weights[n] for n in weights if n not in own and _part(n) in set(map(_part, counted))]
    whole = sum(own[n].numel() for n in counted) + sum(value.numel() for value in lacking)
    share = sum(own[n].numel() for n in counted if n in matched) / whole
    shapes = [f"{n}: {tuple(weights[n].shape)} in the file, {tuple(own[n].shape)} here" for n in reshaped]
    if share < MIN_MATCHED:
        model, size = (checkpoint.config[key]["name"] for key in ("model", "size"))
        raise InputError(
            f"{path} ({checkpoint.layout}) matches {share:.0%} of the encoder"
            f"{', for example ' + shapes[0] if shapes else ''}; it was made with model={model} size={size}"
            f"{_shape(checkpoint.config)}: choose the same here"
        )
    kind = checkpoint.config["model"].get("positions", "flat")
    for modality, encoder in network.encoder.modalities.items():
        kernel = checkpoint.weights.get(f"encoder.modalities.{modality}.embed.weight")
        # Image and spectrogram models, whose kernels have four axes, bring tables of their own.
        if kernel is not None and kernel.dim() != 4 and encoder.positions_kind != kind:
            trained = f"{path} ({checkpoint.layout}) was trained with model.positions={kind}"
            raise InputError(f"{trained}, not {encoder.positions_kind}: choose the same here")
        heads = checkpoint.config["size"].get("heads")
        if kernel is not None and checkpoint.heads_stated and heads != encoder.heads:
            # The tensors fit all the same, and would compute something else.
            trained = f"{path} ({checkpoint.layout}) was trained with size.heads={heads}"
            raise InputError(f"{trained}, not {encoder.heads}: choose the same here")
    network.load_state_dict(matched, strict=False)
    groups = [matched, missing, unexpected, reshaped]
    rows = [
        (part, *(sum(_part(name) == part for name in group) for group in groups))
        for part in dict.fromkeys(_part(name) for group in groups for name in group)
    ]
    notes = [f"left as it was, for the shape differs: {line}" for line in shapes[:4]]
    if len(shapes) > 4:
        notes.append(f"left as they were, for the shape differs: {len(shapes) - 4} more")
    if checkpoint.unexpected:
        notes.append(f"not used: {', '.join(checkpoint.unexpected[:8])}{', ...' if checkpoint.unexpected[8:] else ''}")
    title = f"weights from {path} ({checkpoint.layout}): {share:.0%} of the encoder"
    return Match(title, rows, notes, frozenset(matched))  # type: ignore[arg-type]


def _shape(config: Mapping[str, Any]) -> str:
    """The settings that decide what fits, where they are known."""
    if "dim" not in config["size"]:
        return ""
    size = ", ".join(f"size.{key}={config['size'][key]}" for key in ("dim", "depth", "heads", "audio_depth"))
    patch = ",".join(map(str, config["model"]["video_patch"]))
    return f" ({size}, model.video_patch=[{patch}])"


def _part(name: str) -> str:
    """`encoder.modalities.video`, `encoder.fusion`, `decoders.video`, `heads.video` and so on."""
    return ".".join(name.split(".")[: 3 if name.startswith("encoder.modalities.") else 2])


def _fit(name: str, value: Tensor, network: MaskedAutoencoder | Classifier) -> Tensor:
    """A foreign kernel or position table for the grid of its modality; anything else as it is."""
    for modality, encoder in network.encoder.modalities.items():
        if name == f"encoder.modalities.{modality}.embed.weight" and value.dim() > 2:
            return _fit_kernel(value, encoder.grid.patch)
        if name == f"encoder.modalities.{modality}.positions" and value.dim() == 3:
            return _fit_positions(value, encoder.grid)
    return value


def _learned_positions(checkpoint: Checkpoint, network: MaskedAutoencoder | Classifier) -> dict[str, Tensor]:
    """Tables that a checkpoint of ours has from an image model, interpolated for other grids than its own."""
    tables = {}
    for modality, encoder in network.encoder.modalities.items():
        name = f"encoder.modalities.{modality}.positions"
        table = checkpoint.weights.get(name)
        if table is None or table.dim() != 2 or table.shape[0] == encoder.grid.tokens:
            continue
        # Without memory, and without drawing from the random state.
        with torch.device("meta"):
            size = build_from_config(checkpoint.config).encoder.modalities[modality].grid.size
        table = table.float()
        computed = grid_positions(size, table.shape[1], checkpoint.config["model"].get("positions", "flat"))
        if len(size) == len(encoder.grid.size) and not torch.allclose(table, computed, atol=1e-5):
            cells = table.T.unflatten(1, size)[None]
            mode = "bilinear" if len(size) == 2 else "trilinear"
            tables[name] = F.interpolate(cells, encoder.grid.size, mode=mode)[0].flatten(1).T
    return tables


def _fit_kernel(kernel: Tensor, patch: tuple[int, ...]) -> Tensor:
    """A convolution's kernel (dim, C, *patch) as rows (dim, P x C), in which channels run fastest."""
    if kernel.dim() - 2 < len(patch):
        kernel = kernel.unsqueeze(2).repeat_interleave(patch[0], 2) / patch[0]
    return kernel.movedim(1, -1).flatten(1)


def _fit_positions(table: Tensor, grid: Grid) -> Tensor:
    """An image or spectrogram model's positions (1, N or 1 + N, dim), a class token's first, for a grid of ours."""
    count, height = table.shape[1], grid.size[-2]
    if len(grid.size) == 2:
        # A spectrogram, of more or less time. Tokens are 160 ms apart in both, so the first rows fit.
        rows, width = count // AUDIOMAE_BANDS, AUDIOMAE_BANDS
        table = table[:, count - rows * width :][:, : height * width]
        rows = min(rows, height)
    else:
        rows = width = math.isqrt(count)
        table = table[:, count - rows * width :]
    table = resample_abs_pos_embed(table, list(grid.size[-2:]), [rows, width], num_prefix_tokens=0)[0]
    if len(grid.size) == 2 or grid.size[0] == 1:
        return table
    time = TIME_SHARE * sincos_positions(grid.size[0], table.shape[1])
    return (table[None] + time[:, None]).flatten(0, 1)
