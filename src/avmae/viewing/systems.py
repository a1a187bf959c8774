"""What the commands do with checkpoints and videos: load by kind, name, reconstruct, rank classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from avmae.data.decode.window import read_window
from avmae.data.sources.folder import SUFFIXES
from avmae.errors import InputError, MediaError
from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.build import MaskSpec, build_maskings
from avmae.models.classifier import Classifier
from avmae.models.weights import load_with_config
from avmae.runs.files import write_json
from avmae.viewing.reconstruction import compare


@dataclass(frozen=True)
class System:
    """A pretrained model in evaluation mode, what its maskings were built from, and its names."""

    label: str
    model: MaskedAutoencoder
    mask: dict[str, Any]
    size: str


def load_autoencoder(path: str | Path) -> tuple[MaskedAutoencoder, dict[str, Any]]:
    """The model of a pretraining checkpoint, and its config; an InputError says that it is none."""
    model, config = load_with_config(path)
    if not isinstance(model, MaskedAutoencoder):
        raise InputError(f"{path} is a classifier, which has no decoder; give the checkpoint it was fine-tuned from")
    return model, config


def load_classifier(path: str | Path) -> tuple[Classifier, dict[str, Any]]:
    """The model of a fine-tuned checkpoint, and its config; an InputError says that it is none."""
    model, config = load_with_config(path)
    if not isinstance(model, Classifier):
        raise InputError(
            f"{path} is a pretraining checkpoint and knows no classes; fine-tune it first: "
            "python -m avmae.train experiment=finetune_ucf101 ckpt=..."
        )
    return model, config


def load_systems(paths: Sequence[str | Path], mask: Mapping[str, Any]) -> list[System]:
    """Load pretraining checkpoints that are to be compared.

    All are masked by the settings of `MaskSpec` in `mask`, and where it has none by the first one's, so that
    differences come from the systems.

    Raises:
        InputError: one has no decoder, or takes another window than the first.
    """
    systems: list[System] = []
    for path in paths:
        model, settings = load_autoencoder(path)
        first = systems[0].model.clip if systems else model.clip
        for key, value in asdict(model.clip).items():
            if value != getattr(first, key):
                raise InputError(
                    f"{path} was trained with clip.{key}={value}, the first checkpoint with {getattr(first, key)}; "
                    "they can only be compared on the same window"
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
    source: Path,
    systems: Sequence[System],
    output: Path,
    position: float = 0.5,
    seed: int = 0,
    without_audio: bool = False,
) -> dict[Path, dict[str, dict[str, float | None]] | MediaError]:
    """Reconstruct a video, or all in a folder; write what `Comparison.write` does and `metrics.json`.

    Args:
        source: a video, or a folder of them.
        systems: what `load_systems` loaded.
        output: folder to write to; of a folder of videos, each gets a folder below it.
        position: of the window, from 0 for the first to 1 for the last that fits.
        seed: of the masks.
        without_audio: see `compare`.

    Returns:
        By file, the metrics by system; of a file in a folder that cannot be read, why.

    Raises:
        InputError: there is no video, or none that can be read; or the output cannot be written.
    """
    clip, found = systems[0].model.clip, dict[Path, dict[str, dict[str, float | None]] | MediaError]()
    folders = folders_of(source, output) if source.is_dir() else {source: output}
    for file, folder in folders.items():
        try:
            window = read_window(file, clip, position, clip.canvas)
        except MediaError as error:
            found[file] = error
            continue
        comparison = compare({system.label: system.model for system in systems}, window, seed, without_audio)
        found[file] = comparison.metrics
        content = {"input": str(file), "mask": systems[0].mask, "seed": seed, "systems": comparison.metrics}
        write_json(folder / "metrics.json", content)
        comparison.write(folder, f"{file.name}  ({', '.join(f'{system.label} {system.size}' for system in systems)})")
    unread = [error for error in found.values() if isinstance(error, MediaError)]
    if len(unread) == len(found):
        several = f"none of the {len(found)} videos can be read, the first: "
        raise MediaError(f"{several if len(found) > 1 else ''}{unread[0]}")
    return found


def folders_of(source: Path, output: Path) -> dict[Path, Path]:
    """The videos in a folder, and the folder of each one's reconstruction.

    Raises:
        InputError: there are none.
    """
    files = sorted(file for file in source.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise InputError(f"input={source} holds no videos ({', '.join(sorted(SUFFIXES))})")
    named = Counter(file.with_suffix("") for file in files)
    # a.mp4 and a.avi are two videos.
    suffixes = {file: "" if named[file.with_suffix("")] == 1 else file.suffix for file in files}
    return {file: output / file.relative_to(source).with_suffix(suffix) for file, suffix in suffixes.items()}


def top_classes(probabilities: Tensor, names: Sequence[str], count: int) -> list[dict[str, Any]]:
    """The most probable of (classes,) probabilities, as ``class``, ``label`` and ``score``, best first."""
    scores, labels = probabilities.topk(min(count, len(probabilities)))
    return [
        {"class": names[label], "label": label, "score": score}
        for score, label in zip(scores.tolist(), labels.tolist(), strict=True)
    ]
