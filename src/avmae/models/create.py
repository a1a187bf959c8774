"""Models by name, as in timm: the values are those of the config files that the commands use."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avmae.clip import ClipSpec
from avmae.errors import InputError
from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.build import MaskSpec, ModelSpec, SizeSpec, build_autoencoder, build_classifier
from avmae.models.classifier import Classifier
from avmae.models.start import start_from
from avmae.runs.settings import choices, did_you_mean, read_choice, spec

HEAD = ("dropout", "pool", "frozen")
"""Settings of `conf/task/classify.yaml` that the network is made of; the others are of training."""


def list_models() -> list[str]:
    """Names of the systems that `create_model` takes."""
    return choices("model")


def create_model(
    name: str = "avmae",
    size: str = "base",
    task: str = "pretrain",
    classes: int | None = None,
    pretrained: str | Path | None = None,
    **overrides: Any,
) -> MaskedAutoencoder | Classifier:
    """Build a model, freshly initialised from torch's global random state, in training mode as modules of torch are.

    Args:
        name: of the system, see `list_models`.
        size: tiny, small, base, large or huge.
        task: `pretrain` for the masked autoencoder, `classify` for encoder and head.
        classes: of the classifier.
        pretrained: start from the weights of a checkpoint, whatever ``ckpt=`` of the commands takes; see `start_from`.
        overrides: other settings, as on the command line with the dot as underscore: ``clip_frames=8``,
            ``model_positions="clock"``, ``mask_ratio=0.9``, ``size_depth=6``, ``task_dropout=0.5``.

    Raises:
        InputError: a name or setting is unknown, or settings or weights do not go together.
    """
    if task not in ("pretrain", "classify"):
        raise InputError(f"task={task} is unknown; choose pretrain or classify")
    parts = {"clip": read_choice("clip", "base"), "model": read_choice("model", name)}
    parts |= {"size": read_choice("size", size), "mask": read_choice("mask", "base")}
    if task == "classify":
        head = read_choice("task", "classify")
        parts["task"] = {key: head[key] for key in HEAD}
        del parts["mask"]
    for override, value in overrides.items():
        group, key = _place(override, parts)
        parts[group][key] = value
    clip, model = spec(ClipSpec, "clip", parts["clip"]), spec(ModelSpec, "model", parts["model"])
    dims = spec(SizeSpec, "size", parts["size"])
    network: MaskedAutoencoder | Classifier
    if task == "pretrain":
        if classes is not None:
            raise InputError(f"classes={classes} is for task='classify'; a pretraining has none")
        network = build_autoencoder(clip, model, dims, spec(MaskSpec, "mask", parts["mask"]))
    elif not isinstance(classes, int) or classes < 1:
        raise InputError(f"classes={classes} must be the number of classes for task='classify'")
    else:
        network = build_classifier(clip, model, dims, classes, **parts["task"])
    if isinstance(pretrained, bool):
        raise InputError(f"pretrained={pretrained} must be what ckpt= takes, such as the path of a checkpoint, or None")
    if pretrained is not None:
        start_from(network, pretrained)
    return network


def _place(override: str, parts: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """Group and key of a setting that is written with an underscore between them."""
    known = {f"{group}_{key}": (group, key) for group, values in parts.items() for key in values if key != "name"}
    if override not in known:
        ends = [name for name in known if name.endswith(f"_{override}")]
        hint = f"did you mean {ends[0]}? " if ends else did_you_mean(override, known)
        raise InputError(f"unknown setting {override}; {hint or 'there are ' + ', '.join(known)}".rstrip())
    return known[override]
