"""Training that starts from the weights of a checkpoint, ours or another project's."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from avmae.clip import ClipSpec
from avmae.errors import InputError
from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.build import grids_from_config
from avmae.models.classifier import Classifier
from avmae.models.fit import fit, interpolated_positions, renormalized
from avmae.models.weights import Checkpoint, read_checkpoint

MIN_MATCHED = 0.9
"""Least share of the encoder parts that a file has which must fit."""


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
    rows: list[tuple[str | int, ...]]
    notes: list[str]
    filled: frozenset[str]


def start_from(network: MaskedAutoencoder | Classifier, path: str | Path) -> Match:
    """Copy the weights of a checkpoint into a network of the same size.

    Of the encoder, the parts count that the file has: a `videomae` fills the video part of an `avmae`. An image
    model's patch kernel is spread over the frames of a tubelet, so that a still clip gives what the image gave
    (Carreira & Zisserman 2017). Tables of positions, fixed and learned, are interpolated for another size or a longer
    clip. Where inputs are normalised by another mean and standard deviation than the weights were trained with, the
    first layer takes up the difference. A head for another number of classes stays as it was drawn.

    Args:
        network: autoencoder or classifier, changed in place.
        path: anything that `read_checkpoint` reads.

    Raises:
        InputError: less than 90 % of those parts is matched by name and shape, or they were trained with another number
            of heads or another kind of positions; the network is unchanged then.
    """
    checkpoint = read_checkpoint(path)
    kind = checkpoint.config["model"].get("positions", "flat")
    clip, grids = grids_from_config(checkpoint.config)
    weights = {name: fit(name, value, network) for name, value in checkpoint.weights.items()}
    weights |= interpolated_positions(checkpoint.weights, kind, grids, network)
    weights |= renormalized(weights, clip, network)
    # Where there is no table of positions, the computed one is right.
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
    _refuse_other_attention(checkpoint, network, kind)
    network.load_state_dict(matched, strict=False)
    notes = _left(shapes)
    if "encoder.modalities.audio" in parts:
        notes += _other_spectrogram(clip, network.clip)
    if checkpoint.unexpected:
        notes.append(f"not used: {', '.join(checkpoint.unexpected[:8])}{', ...' if checkpoint.unexpected[8:] else ''}")
    title = f"weights from {path} ({checkpoint.layout}): {share:.0%} of the encoder"
    return Match(title, _counts(matched, missing, unexpected, reshaped), notes, frozenset(matched))


def _left(shapes: list[str]) -> list[str]:
    """What is said of tensors of another shape, of which there may be many."""
    notes = [f"left as it was, for the shape differs: {line}" for line in shapes[:4]]
    more = len(shapes) - len(notes)
    return [*notes, f"left as they were, for the shape differs: {more} more"] if more else notes


def _counts(*groups: Collection[str]) -> list[tuple[str | int, ...]]:
    """How many names of each group are of each part."""
    found = [Counter(map(_part, group)) for group in groups]
    return [(part, *(count[part] for count in found)) for part in dict.fromkeys(chain(*found))]


def _refuse_other_attention(checkpoint: Checkpoint, network: MaskedAutoencoder | Classifier, kind: str) -> None:
    """Refuse weights whose tensors fit, and which would compute something else: of other heads or positions."""
    for modality, encoder in network.encoder.modalities.items():
        kernel = checkpoint.weights.get(f"encoder.modalities.{modality}.embed.weight")
        if kernel is None:
            continue
        trained = f"{checkpoint.path} ({checkpoint.layout}) was trained with"
        # Image and spectrogram models, whose kernels have four axes, bring tables of their own.
        if kernel.dim() != 4 and encoder.positions_kind != kind:
            raise InputError(f"{trained} model.positions={kind}, not {encoder.positions_kind}: choose the same here")
        heads = checkpoint.config["size"].get("heads")
        if checkpoint.heads_stated and heads != encoder.heads:
            raise InputError(f"{trained} size.heads={heads}, not {encoder.heads}: choose the same here")


def _other_spectrogram(trained: ClipSpec, clip: ClipSpec) -> list[str]:
    """What makes the spectrogram another than the one that weights were trained on, and no layer can take up."""
    keys = ("filter_bank", "sample_rate", "mel_bins")
    differing = [f"clip.{key}={getattr(trained, key)}" for key in keys if getattr(trained, key) != getattr(clip, key)]
    if not differing:
        return []
    return [f"the audio encoder was trained on other spectrograms, with {', '.join(differing)}: choose the same here"]


def _shape(config: Mapping[str, Any]) -> str:
    """The settings that decide what fits, where they are known."""
    if "dim" not in config["size"]:
        return ""
    size = ", ".join(f"size.{key}={config['size'][key]}" for key in ("dim", "depth", "heads", "audio_depth"))
    patch = ",".join(map(str, config["model"]["video_patch"]))
    return f" ({size}, model.video_patch=[{patch}])"


def _part(name: str) -> str:
    """`encoder.modalities.video`, `encoder.fusion`, `decoders.video`, `heads.video` and so on."""
    return ".".join(name.split(".")[: 3 if name.startswith("encoder.modalities.") else 2]).removesuffix(".blocks")
