"""The config of a model read off foreign weights, and transformers' config for a model of ours."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from avmae.clip import ClipSpec
from avmae.models.build import MaskSpec, ModelSpec, SizeSpec
from avmae.models.layouts import TRANSFORMERS, Renamed

AUDIOMAE = ClipSpec(filter_bank="kaldi", mel_mean=-4.2677393, mel_std=2 * 4.5689974)
"""The spectrogram that AudioMAE was trained on: AudioSet's statistics in its ``main_pretrain.py``."""


def describe(renamed: Renamed, hf: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The config that `avmae.models.build.build_from_config` needs for an image or video model, read off its weights.

    What weights do not tell is taken from transformers' ``config.json`` where there is one, and else is official
    VideoMAE's: 16 frames, 224 px, heads of 64 numbers (of 80 in huge).

    Returns:
        Plain data; ``task`` is `pretrain`, `classify`, `tag`, or `encoder` where the file has neither decoder nor head.
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
    parts: dict[str, Any] = {"clip": clip, "model": model, "size": size}
    return {name: dataclasses.asdict(part) for name, part in parts.items()} | {"seed": 0} | _task(weights, hf)


def _task(weights: Mapping[str, Tensor], hf: Mapping[str, Any]) -> dict[str, Any]:
    """What a model was made for, by its heads, and what is known of that."""
    if "heads.video.weight" in weights:
        classes = weights["heads.video.weight"].shape[0]
        names = {int(label): name for label, name in (hf.get("id2label") or {}).items()}
        named = [names.get(label, f"class {label}") for label in range(classes)]
        return {"task": "classify", "classes": classes, "dropout": 0.0, "class_names": named}
    # transformers can train without the norm before the decoder (use_mean_pooling); there is no such model here.
    if {"decoders.video.head.weight", "decoders.video.encoder_norm.weight"} <= weights.keys():
        return {"task": "pretrain", "mask": dataclasses.asdict(MaskSpec())}
    return {"task": "encoder"}


HEADS = {1280: 16, 640: 8}
NAMES = {(384, 12): "small", (768, 12): "base", (1024, 24): "large", (1280, 32): "huge"}


def _depth(weights: Mapping[str, Tensor], stem: str) -> int:
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
    # Plain predictions would be taken for pixels in [0, 1].
    if config["task"] == "pretrain" and not (model["normalize_target"] and model.get("decoder", "self") == "self"):
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
        "use_mean_pooling": config["task"] in ("classify", "tag"),
    }
    if config["task"] in ("classify", "tag"):
        names = dict(enumerate(config["class_names"]))
        theirs |= {
            "architectures": ["VideoMAEForVideoClassification"],
            "id2label": {str(label): name for label, name in names.items()},
            "label2id": {name: label for label, name in names.items()},
        }
        if config["task"] == "tag":
            theirs["problem_type"] = "multi_label_classification"
    return theirs


def transformers_processor(config: Mapping[str, Any]) -> dict[str, Any]:
    """``preprocessor_config.json`` of transformers' VideoMAE: how frames become what a model of this config takes."""
    clip = config["clip"]
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": clip["size"]},
        "do_center_crop": True,
        "crop_size": {"height": clip["size"], "width": clip["size"]},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(clip["pixel_mean"]),
        "image_std": list(clip["pixel_std"]),
    }
