"""What the commands do with checkpoints and videos: load by kind, name, reconstruct, rank classes."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from avmae.clip import ClipSpec
from avmae.data.decode.window import read_window
from avmae.data.sources.folder import SUFFIXES
from avmae.errors import InputError, MediaError
from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.build import MaskSpec, build_maskings
from avmae.models.classifier import Classifier
from avmae.models.weights import load_model, read_checkpoint
from avmae.viewing.reconstruction import compare


@dataclass(frozen=True)
class System:
    """A pretrained model and its name in figures and tables.

    Args:
        label: its name, unlike that of any other system.
        model: in evaluation mode.
        mask: what its maskings were built from.
        size: name of the model's size.
    """

    label: str
    model: MaskedAutoencoder
    mask: dict[str, Any]
    size: str


def load_autoencoder(path: str | Path) -> tuple[MaskedAutoencoder, dict[str, Any]]:
    """The model of a pretraining checkpoint, and its config.

    Raises:
        InputError: it cannot be read, or is a classifier.
    """
    model = load_model(path)
    if not isinstance(model, MaskedAutoencoder):
        raise InputError(f"{path} is a classifier, which has no decoder; give the checkpoint it was fine-tuned from")
    return model, dict(read_checkpoint(path).config)


def load_classifier(path: str | Path) -> tuple[Classifier, dict[str, Any]]:
    """The model of a fine-tuned checkpoint, and its config.

    Raises:
        InputError: it cannot be read, or is an autoencoder.
    """
    model = load_model(path)
    if not isinstance(model, Classifier):
        raise InputError(
            f"{path} is a pretraining checkpoint and knows no classes; fine-tune it first: "
            "python -m avmae.train experiment=finetune_ucf101 ckpt=..."
        )
    return model, dict(read_checkpoint(path).config)


def load_systems(paths: Sequence[str | Path], mask: Mapping[str, Any]) -> list[System]:
    """Load pretraining checkpoints that are to be compared.

    Args:
        paths: of the checkpoints.
        mask: settings of `MaskSpec`; those not given are the first checkpoint's, for all of them, so that differences
            come from the systems.

    Raises:
        InputError: one has no decoder, or takes another window than the first.
    """
    systems: list[System] = []
    for path in paths:
        model, settings = load_autoencoder(path)
        first = systems[0].model.clip if systems else model.clip
        for key in ClipSpec.__dataclass_fields__:
            if getattr(model.clip, key) != getattr(first, key):
                raise InputError(
                    f"{path} was trained with clip.{key}={getattr(model.clip, key)}, the first checkpoint with "
                    f"{getattr(first, key)}; they can only be compared on the same window"
                )
        chosen = systems[0].mask if systems else {**settings["mask"], **mask}
        model.maskings = build_maskings(model.encoder, MaskSpec(**chosen))
        name, taken = settings["model"]["name"], {system.label for system in systems}
        run, file = Path(path).absolute().parent.parent.name, Path(path).stem
        labels = (name, f"{name} ({run})", f"{name} ({run}, {file})", f"{name} ({len(systems) + 1})")
        label = next(label for label in labels if label not in taken)
        systems.append(System(label, model, chosen, settings["size"]["name"]))
    return systems


def reconstruct_files(
    source: Path, systems: Sequence[System], output: Path, position: float, seed: int
) -> dict[Path, dict[str, dict[str, float | None]] | MediaError]:
    """Reconstruct a video, or all in a folder, and write what `Comparison.write` does and `metrics.json`.

    Returns:
        By file, the metrics by system; of a file in a folder that cannot be read, why.

    Raises:
        InputError: there is no video, or none that can be read; or the output cannot be written.
    """
    files = [source]
    if source.is_dir():
        files = sorted(file for file in source.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise InputError(f"input={source} holds no videos ({', '.join(sorted(SUFFIXES))})")
    clip, names = systems[0].model.clip, ", ".join(f"{system.label} {system.size}" for system in systems)
    named = Counter(file.with_suffix("") for file in files)
    found: dict[Path, dict[str, dict[str, float | None]] | MediaError] = {}
    for file in files:
        folder = output
        if source.is_dir():
            # a.mp4 and a.avi are two videos.
            folder /= file.relative_to(source).with_suffix("" if named[file.with_suffix("")] == 1 else file.suffix)
        try:
            window = read_window(file, clip, position, clip.canvas)
        except MediaError as error:
            if not source.is_dir():
                raise
            found[file] = error
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"output={folder} cannot be written: {error.strerror}") from error
        comparison = compare({system.label: system.model for system in systems}, window, seed)
        comparison.write(folder, f"{file.name}  ({names})")
        content = {"input": str(file), "mask": systems[0].mask, "seed": seed, "systems": comparison.metrics}
        (folder / "metrics.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
        found[file] = comparison.metrics
    unread = [error for error in found.values() if isinstance(error, MediaError)]
    if len(unread) == len(files):
        raise MediaError(f"none of the {len(files)} videos can be read, the first: {unread[0]}")
    return found


def top_classes(probabilities: Tensor, names: Sequence[str], count: int) -> list[dict[str, Any]]:
    """The most probable of (classes,) probabilities, as ``class``, ``label`` and ``score``, best first."""
    scores, labels = probabilities.topk(min(count, len(probabilities)))
    return [
        {"class": names[label], "label": label, "score": score}
        for score, label in zip(scores.tolist(), labels.tolist(), strict=True)
    ]
