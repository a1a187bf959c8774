"""Weights of other projects under our names: one table of names for each layout, recognised by content.

Names that differ are renamed by the first rule that fits; what no rule fits is handed back as unexpected, or refused
where the encoder would not be the same without it. LayerScale becomes part of the layer before it. Tensors keep their
shape, but for the joined query, key and value of attention: a patch kernel stays a convolution's and a position table
keeps its class token until it is known which grid they are for (`avmae.models.weights`).
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avmae.clip import ClipSpec
from avmae.errors import InputError
from avmae.models.build import MaskSpec, ModelSpec, SizeSpec

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


AUDIOMAE = ClipSpec(filter_bank="kaldi", mel_mean=-4.2677393, mel_std=2 * 4.5689974)
"""The spectrogram that AudioMAE was trained on: AudioSet's statistics in its ``main_pretrain.py``."""

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


def describe(renamed: Renamed, hf: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The config that `avmae.models.build.build_from_config` needs for an image or video model, read off its weights.

    What weights do not tell is taken from transformers' ``config.json`` where there is one, and else is official
    VideoMAE's: 16 frames, 224 px, heads of 64 numbers (of 80 in huge).

    Returns:
        Plain data; ``task`` is `pretrain`, `classify`, or `encoder` where the file has neither decoder nor head.
    """
    hf, weights = hf or {}, renamed.weights
    kernel = weights.get("encoder.modalities.video.embed.weight")
    if kernel is None:
        return {
            "task": "encoder",
            "clip": dataclasses.asdict(AUDIOMAE),
            "model": {"name": renamed.layout},
            "size": {"name": "its own"},
        }
    dim = kernel.shape[0]
    patch = tuple(kernel.shape[2:]) if kernel.dim() == 5 else (1, *kernel.shape[2:])
    apart = kernel.dim() == 4
    project = weights.get("decoders.video.project.weight")
    decoder_dim = 64 if project is None else project.shape[0]
    decoder_heads = HEADS.get(decoder_dim, max(1, decoder_dim // 64))
    if project is not None:
        # Every config of transformers has a decoder's heads, also beside a classifier's weights.
        decoder_heads = hf.get("decoder_num_attention_heads", decoder_heads)
    depth = _depth(weights, "encoder.modalities.video.blocks")
    model = ModelSpec(
        "imagemae" if apart else "videomae",
        ("video",),
        "none",
        video_patch=patch,
        frames_apart=apart,
        normalize_target=hf.get("norm_pix_loss", True),
        norm_eps=hf.get("layer_norm_eps", 1e-12 if renamed.layout == TRANSFORMERS else 1e-6),
        # transformers leaves the norms before its heads at torch's default, whatever the config says.
        last_norm_eps=1e-5 if renamed.layout == TRANSFORMERS else 1e-6,
    )
    size = SizeSpec(
        name=NAMES.get((dim, depth), f"{dim}x{depth}"),
        dim=dim,
        depth=depth,
        heads=hf.get("num_attention_heads", HEADS.get(dim, max(1, dim // 64))),
        audio_depth=depth,
        decoder_dim=decoder_dim,
        decoder_depth=_depth(weights, "decoders.video.blocks"),
        decoder_heads=decoder_heads,
    )
    side = hf.get("image_size", 224)
    clip = ClipSpec(frames=hf.get("num_frames", 16), size=side[0] if isinstance(side, list) else side)
    config: dict[str, Any] = {
        "clip": dataclasses.asdict(clip),
        "model": dataclasses.asdict(model),
        "size": dataclasses.asdict(size),
        "seed": 0,
    }
    if "heads.video.weight" in weights:
        classes = weights["heads.video.weight"].shape[0]
        names = {int(label): name for label, name in (hf.get("id2label") or {}).items()}
        config |= {"task": "classify", "classes": classes, "dropout": 0.0}
        return config | {"class_names": [names.get(label, f"class {label}") for label in range(classes)]}
    # transformers can train without the norm before the decoder (use_mean_pooling); there is no such model here.
    if {"decoders.video.head.weight", "decoders.video.encoder_norm.weight"} <= weights.keys():
        return config | {"task": "pretrain", "mask": dataclasses.asdict(MaskSpec())}
    return config | {"task": "encoder"}


HEADS = {1280: 16, 640: 8}
NAMES = {(384, 12): "small", (768, 12): "base", (1024, 24): "large", (1280, 32): "huge"}


def _depth(weights: Weights, stem: str) -> int:
    numbers = [int(m[1]) for name in weights if (m := re.match(rf"{re.escape(stem)}\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1


def transformers_config(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """``config.json`` of transformers' VideoMAE for a config of ours; None for a model that it does not have.

    It has video alone, tubelets of any length with square patches, VideoMAE's table of positions, and for classes
    the mean token.
    """
    clip, model, size = (config[key] for key in ("clip", "model", "size"))
    frames, height, width = model["video_patch"]
    known = list(model["modalities"]) == ["video"] and not model["frames_apart"] and model["positions"] == "flat"
    if not known or height != width or config.get("pool", "mean") != "mean":
        return None
    if config["task"] == "pretrain" and not model["normalize_target"]:
        # It would take the predictions for pixels in [0, 1].
        return None
    theirs = {
        "model_type": "videomae",
        "architectures": ["VideoMAEForPreTraining"],
        "image_size": clip["size"],
        "num_frames": clip["frames"],
        "patch_size": height,
        "tubelet_size": frames,
        "hidden_size": size["dim"],
        "num_hidden_layers": size["depth"],
        "num_attention_heads": size["heads"],
        "intermediate_size": 4 * size["dim"],
        "decoder_hidden_size": size["decoder_dim"],
        "decoder_num_hidden_layers": size["decoder_depth"],
        "decoder_num_attention_heads": size["decoder_heads"],
        "decoder_intermediate_size": 4 * size["decoder_dim"],
        "layer_norm_eps": model.get("norm_eps", 1e-6),
        "norm_pix_loss": model["normalize_target"],
        # Without it, their encoder ends in a norm: the one before our decoder.
        "use_mean_pooling": config["task"] == "classify",
    }
    if config["task"] == "classify":
        names = dict(enumerate(config["class_names"]))
        theirs |= {
            "architectures": ["VideoMAEForVideoClassification"],
            "id2label": {str(label): name for label, name in names.items()},
            "label2id": {name: label for label, name in names.items()},
        }
    return theirs


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
