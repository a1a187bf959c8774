"""Weights of other projects under our names: one table of names for each layout, recognised by content.

Names that differ are renamed by the first rule that fits; what no rule fits is handed back as unexpected, or refused
where the encoder would not be the same without it. LayerScale becomes part of the layer before it. Tensors keep their
shape, but for the joined query, key and value of attention: a patch kernel stays a convolution's and a position table
keeps its class token until it is known which grid they are for (`avmae.models.fit`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avmae.errors import InputError

Weights = dict[str, Tensor]

WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|backbone)\.)+|(?<=\.)_orig_mod\.")
"""What DeepSpeed, DDP, torch.compile and fine-tuning scripts put into names."""


@dataclass(frozen=True)
class Layout:
    """How a project names its weights.

    Args:
        name: for messages.
        kernel: name of the patch kernel, which every model has.
        axes: of the kernel: 5 for a convolution over time and space, 4 over space.
        channels: of what the kernel sees: 3 for frames, 1 for a spectrogram.
        rules: pairs of a regular expression for a whole name, and ours.
    """

    name: str
    kernel: str
    axes: int
    channels: int
    rules: tuple[tuple[str, str], ...]


def _vit(modality: str, prefix: str = "") -> tuple[tuple[str, str], ...]:
    """The names timm's vision transformer has, and official VideoMAE and MAE after it."""
    return (
        (rf"{prefix}patch_embed\.proj\.(\w+)", rf"encoder.modalities.{modality}.embed.\1"),
        (rf"{prefix}blocks\.(\d+)\.ls([12])\.gamma", rf"encoder.modalities.{modality}.blocks.\1.gamma_\2"),
        (rf"{prefix}blocks\.(\d+)\.(.+)", rf"encoder.modalities.{modality}.blocks.\1.\2"),
    )


_HEAD = ((r"fc_norm\.(\w+)", r"norms.video.\1"), (r"head\.(\w+)", r"heads.video.\1"))


def _hf_blocks(theirs: str, ours: str) -> tuple[tuple[str, str], ...]:
    return (
        (rf"{theirs}\.(\d+)\.layernorm_before\.(\w+)", rf"{ours}.\1.norm1.\2"),
        (rf"{theirs}\.(\d+)\.attention\.attention\.(\w+\.\w+)", rf"{ours}.\1.attn.\2"),
        # How transformers writes them; 5.6 to 5.17 write query.bias, key.bias and value.bias.
        (rf"{theirs}\.(\d+)\.attention\.attention\.([qv])_bias", rf"{ours}.\1.attn.\2_bias"),
        (rf"{theirs}\.(\d+)\.attention\.output\.dense\.(\w+)", rf"{ours}.\1.attn.proj.\2"),
        (rf"{theirs}\.(\d+)\.layernorm_after\.(\w+)", rf"{ours}.\1.norm2.\2"),
        (rf"{theirs}\.(\d+)\.intermediate\.dense\.(\w+)", rf"{ours}.\1.mlp.fc1.\2"),
        (rf"{theirs}\.(\d+)\.output\.dense\.(\w+)", rf"{ours}.\1.mlp.fc2.\2"),
        (rf"{theirs}\.(\d+)\.(.+)", rf"{ours}.\1.\2"),
    )


TRANSFORMERS = "VideoMAE of transformers"

LAYOUTS = (
    Layout(
        "official VideoMAE pretraining",
        "encoder.patch_embed.proj.weight",
        5,
        3,
        (
            *_vit("video", r"encoder\."),
            (r"encoder\.norm\.(\w+)", r"decoders.video.encoder_norm.\1"),
            (r"encoder_to_decoder\.(\w+)", r"decoders.video.project.\1"),
            (r"mask_token", "decoders.video.mask_token"),
            (r"decoder\.((?:blocks|norm|head)\..+)", r"decoders.video.\1"),
        ),
    ),
    Layout("official VideoMAE classifier", "patch_embed.proj.weight", 5, 3, (*_vit("video"), *_HEAD)),
    Layout(
        TRANSFORMERS,
        "videomae.embeddings.patch_embeddings.projection.weight",
        5,
        3,
        (
            (r"videomae\.embeddings\.patch_embeddings\.projection\.(\w+)", r"encoder.modalities.video.embed.\1"),
            *_hf_blocks(r"videomae\.encoder\.layer", "encoder.modalities.video.blocks"),
            (r"videomae\.layernorm\.(\w+)", r"decoders.video.encoder_norm.\1"),
            (r"encoder_to_decoder\.(\w+)", r"decoders.video.project.\1"),
            (r"mask_token", "decoders.video.mask_token"),
            *_hf_blocks(r"decoder\.decoder_layers", "decoders.video.blocks"),
            (r"decoder\.(norm|head)\.(\w+)", r"decoders.video.\1.\2"),
            (r"fc_norm\.(\w+)", r"norms.video.\1"),
            (r"classifier\.(\w+)", r"heads.video.\1"),
        ),
    ),
    Layout(
        "image ViT of timm or MAE",
        "patch_embed.proj.weight",
        4,
        3,
        (*_vit("video"), (r"pos_embed", "encoder.modalities.video.positions"), *_HEAD),
    ),
    Layout(
        "AudioMAE",
        "patch_embed.proj.weight",
        4,
        1,
        (*_vit("audio"), (r"pos_embed", "encoder.modalities.audio.positions")),
    ),
)


_IN_BLOCKS = re.compile(
    r".+\.blocks\.\d+\.(?:(?:norm[12]|attn\.(?:qkv|query|key|value|proj)|mlp\.fc[12])\.(?:weight|bias)|attn\.[qv]_bias"
    r"|gamma_[12])"
)
"""What a file's blocks may have, under our names; `_attention` and `_scaled` make our blocks' own of it."""
_SCALED = {"gamma_1": "attn.proj", "gamma_2": "mlp.fc2"}
"""The layer before each LayerScale."""
_BEFORE_BLOCKS = re.compile(r"(?:encoder\.)?(?:patch_embed|norm_pre)\..+")
"""What is between a file's patches and its blocks, and has to have a place here."""


@dataclass(frozen=True)
class Renamed:
    """What a foreign file holds.

    Args:
        layout: its name.
        weights: by our names, complete attention biases included.
        unexpected: names in the file that have no place here.
    """

    layout: str
    weights: Weights
    unexpected: list[str]


def rename(foreign: Mapping[str, Any], source: str, hf: Mapping[str, Any] | None = None) -> Renamed:
    """Recognise the layout of a state dict and give its weights our names.

    Args:
        foreign: tensors by name; other values are left aside.
        source: the file, for messages.
        hf: transformers' ``config.json``, where there is one.

    Raises:
        InputError: no layout fits, and the nearest is named; a tensor makes the encoder another than ours; or biases
            of attention are missing that the model was trained with.
    """
    tensors = {WRAPPERS.sub("", name): value for name, value in foreign.items() if isinstance(value, Tensor)}
    if "embeddings.patch_embeddings.projection.weight" in tensors:
        # transformers' VideoMAEModel, saved without the model around it.
        tensors = {f"videomae.{name}": value for name, value in tensors.items()}
    for layout in LAYOUTS:
        kernel = tensors.get(layout.kernel)
        if kernel is not None and kernel.dim() == layout.axes and kernel.shape[1] == layout.channels:
            break
    else:
        raise InputError(_no_layout(tensors, source))
    weights: Weights = {}
    named, unexpected = {}, []
    for name, value in tensors.items():
        ours = _ours(name, layout)
        if _BEFORE_BLOCKS.fullmatch(name) if ours is None else ".blocks." in ours and not _IN_BLOCKS.fullmatch(ours):
            raise InputError(
                f"{source} ({layout.name}) has {name}, with which it computes something else than avmae's encoder "
                "could; give weights of a plain vision transformer"
            )
        if ours is None or (ours.startswith("heads.") and "fc_norm.weight" not in tensors):
            # A head without this norm reads the first token; ours reads the mean token.
            unexpected.append(name)
        else:
            weights[ours], named[ours] = value, name
    joined = _attention(weights)
    _require_biases(joined, named, f"{source} ({layout.name})", layout.name == TRANSFORMERS, hf or {})
    return Renamed(layout.name, _scaled(_unbiased(joined)), unexpected)


def _ours(name: str, layout: Layout) -> str | None:
    for pattern, replacement in layout.rules:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    return None


def _no_layout(tensors: Weights, source: str) -> str:
    if not tensors:
        return f"{source} holds no tensors by name; give a checkpoint's state dict"
    fits = {layout: sum(_ours(name, layout) is not None for name in tensors) for layout in LAYOUTS}
    nearest = max(LAYOUTS, key=lambda layout: fits[layout])
    message = f"{source} has none of the layouts that avmae knows"
    if fits[nearest]:
        message += f"; the nearest is {nearest.name}: {fits[nearest]} of {len(tensors)} names fit"
        kernel = tensors.get(nearest.kernel)
        found = "is absent" if kernel is None else f"has shape {tuple(kernel.shape)}"
        message += f", but its patch kernel {nearest.kernel} {found}"
    names = ", ".join(list(tensors)[:3])
    known = ", ".join(layout.name for layout in LAYOUTS)
    return f"{message}. The file's names begin with {names}. Known are avmae, {known}"


def _attention(weights: Weights) -> Weights:
    """Query, key and value joined into one matrix, and the biases of query and value apart.

    A key bias is left out: it adds the same to all logits of a query, and softmax does not see it.
    """
    joined: Weights = {}
    for name, value in weights.items():
        stem, _, kind = name.rpartition(".attn.")
        if kind == "query.weight":
            names = [f"{stem}.attn.{part}.weight" for part in ("query", "key", "value")]
            if all(part in weights for part in names):
                joined[f"{stem}.attn.qkv.weight"] = torch.cat([weights[part] for part in names])
        elif kind in ("query.bias", "value.bias"):
            joined[f"{stem}.attn.{kind[0]}_bias"] = value
        elif kind == "qkv.bias":
            of_query, _, of_value = value.chunk(3)
            joined |= {f"{stem}.attn.q_bias": of_query, f"{stem}.attn.v_bias": of_value}
        elif kind not in ("key.weight", "value.weight", "key.bias"):
            joined[name] = value.flatten() if name.endswith("mask_token") else value
    return joined


def _biases(joined: Weights) -> dict[str, str]:
    """The names of all biases of query and value that the blocks can have, each with the matrix that it belongs to."""
    matrices = [name for name in joined if name.endswith(".attn.qkv.weight")]
    return {name.removesuffix("qkv.weight") + bias: name for name in matrices for bias in ("q_bias", "v_bias")}


def _require_biases(
    joined: Weights, named: Mapping[str, str], source: str, theirs: bool, hf: Mapping[str, Any]
) -> None:
    """Refuse weights that lack biases they were trained with.

    Args:
        joined: what `_attention` gives.
        named: the file's names by ours.
        source: the file, for messages.
        theirs: the layout is transformers', whose models have the biases unless the config says otherwise.
        hf: transformers' ``config.json``.
    """
    biases = _biases(joined)
    lacking = [name for name in biases if name not in joined]
    stated = theirs and hf.get("qv_bias", hf.get("qkv_bias", True))
    if lacking and (stated or len(lacking) < len(biases)):
        matrix, bias = biases[lacking[0]], lacking[0].rpartition(".")[2]
        known = next(named[n] for n in (matrix, matrix.replace("qkv.weight", "query.weight")) if n in named)
        stem = known.removesuffix(".weight").rpartition(".")[0]
        without = '; of a model trained without them, config.json says "qkv_bias": false' if theirs else ""
        raise InputError(
            f"{source} lacks {len(lacking)} of the {len(biases)} biases of attention, {stem}.{bias} among them, and "
            f"would compute something else; give the file that it was made from{without}"
        )
    version = re.match(r"5\.(\d+)\.", str(hf.get("transformers_version", "")))
    found = [joined[name] for name in biases if name in joined]
    if theirs and version and 6 <= int(version[1]) <= 17 and found and not any(bias.any() for bias in found):
        raise InputError(
            f"{source} has zeros for all biases of attention: transformers {hf['transformers_version']}, which wrote "
            "it, loses those of folders of other versions; make it again from the original with transformers 5.18 or "
            "later"
        )


def _unbiased(joined: Weights) -> Weights:
    """With zeros where there are no biases, which compute what a model trained without them does."""
    zeros = {bias: joined[name].new_zeros(joined[name].shape[0] // 3) for bias, name in _biases(joined).items()}
    return zeros | joined


def _scaled(weights: Weights) -> Weights:
    """LayerScale multiplied into the layer before it, which computes the same."""
    scaled = dict(weights)
    for name, gamma in weights.items():
        stem, _, kind = name.rpartition(".")
        if kind in _SCALED:
            del scaled[name]
            for layer in (f"{stem}.{_SCALED[kind]}.{part}" for part in ("weight", "bias")):
                if layer in scaled:
                    scaled[layer] = torch.einsum("i,i...->i...", gamma.float(), scaled[layer].float())
    return scaled


_TO_TRANSFORMERS = (
    (r"encoder\.modalities\.video\.embed\.(\w+)", r"videomae.embeddings.patch_embeddings.projection.\1"),
    (r"encoder\.modalities\.video\.blocks\.(.+)", r"videomae.encoder.layer.\1"),
    (r"decoders\.video\.encoder_norm\.(\w+)", r"videomae.layernorm.\1"),
    (r"decoders\.video\.project\.(\w+)", r"encoder_to_decoder.\1"),
    (r"decoders\.video\.mask_token", "mask_token"),
    (r"decoders\.video\.blocks\.(.+)", r"decoder.decoder_layers.\1"),
    (r"decoders\.video\.(norm|head)\.(\w+)", r"decoder.\1.\2"),
    (r"norms\.video\.(\w+)", r"fc_norm.\1"),
    (r"heads\.video\.(\w+)", r"classifier.\1"),
)
_BLOCK_TO_TRANSFORMERS = {
    ".norm1.": ".layernorm_before.",
    ".attn.proj.": ".attention.output.dense.",
    ".norm2.": ".layernorm_after.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
    # The names that all versions of transformers read.
    ".attn.q_bias": ".attention.attention.q_bias",
    ".attn.v_bias": ".attention.attention.v_bias",
}


def to_transformers(weights: Mapping[str, Tensor], patch: tuple[int, ...]) -> Weights:
    """The weights of a `videomae` under the names of transformers' VideoMAE; inverse of `rename`.

    Args:
        weights: by our names.
        patch: frames, height, width of a tubelet.
    """
    theirs: Weights = {}
    for name, value in weights.items():
        if name.endswith(".positions"):
            continue
        new = next(re.sub(pattern, by, name) for pattern, by in _TO_TRANSFORMERS if re.fullmatch(pattern, name))
        for here, there in _BLOCK_TO_TRANSFORMERS.items():
            new = new.replace(here, there)
        if new.endswith(".attn.qkv.weight"):
            stem = new.removesuffix("attn.qkv.weight") + "attention.attention"
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            theirs |= {f"{stem}.{part}.weight": matrix.clone() for part, matrix in parts}
        elif new.endswith("projection.weight"):
            theirs[new] = value.unflatten(1, (*patch, 3)).movedim(-1, 1).contiguous()
        else:
            theirs[new] = value[None, None].clone() if new == "mask_token" else value
    return theirs
