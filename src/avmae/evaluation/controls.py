"""What a data set gives away without being understood: linear models on simple features.

A class that can be told from the size of its file, or from whether there is sound at all, could be mistaken for
something heard or seen. `pictures` and `sound` say how much so simple a look at each modality tells.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from avmae.data.datamodule import Batch, ClipDataModule
from avmae.data.manifest import SILENCE, inspect
from avmae.evaluation.batches import Inference

RIDGE = 1.0
"""Weight of the penalty, for features of unit variance."""


def linear_accuracy(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int) -> float:
    """Test accuracy of a ridge regression to classes.

    Args:
        train: features (N, D) float32 and labels (N,) int64.
        test: the same of other clips.
        classes: how many there are.
    """
    features, labels = train[0].double(), train[1]
    mean, std = features.mean(0), features.std(0).clamp(min=1e-6)
    targets = torch.nn.functional.one_hot(labels, classes).double()
    x = (features - mean) / std
    weights = torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1]).double(), x.T @ (targets - targets.mean(0)))
    scores = (test[0].double() - mean) / std @ weights + targets.mean(0)
    return float((scores.argmax(1) == test[1]).double().mean())


def picture_features(batch: Batch) -> Tensor:
    """Where brightness is and where it changes, on 8x8 cells, and how fast: (B, 128 + T)."""
    brightness = batch["video"].mean(1)
    cells = torch.nn.functional.adaptive_avg_pool2d(brightness, 8)
    change = torch.nn.functional.adaptive_avg_pool2d(brightness.diff(dim=1).abs(), 8)
    rhythm = torch.fft.rfft(change.flatten(2).mean(2), dim=1).abs()
    return torch.cat([cells.std(1).flatten(1), change.mean(1).flatten(1), rhythm], 1)


def sound_features(batch: Batch) -> Tensor:
    """Mean and standard deviation of each mel bin, and how fast loudness changes; zeros for clips without sound."""
    mel = batch["audio"][:, 0]
    rhythm = torch.fft.rfft(mel.mean(2), dim=1).abs()[:, 1:33]
    features = torch.cat([mel.mean(1), mel.std(1), mel[:, : mel.shape[1] // 2].mean(1), rhythm], 1)
    return features * batch["has_audio"][:, None]


def file_features(path: Path) -> list[float]:
    """What is known of a file without understanding it: size, length, rate, shape, level and length of its sound."""
    record = inspect(path.parent, path.name)
    loud = record.audio_level if record.has_audio else SILENCE
    bits = record.size / max(record.seconds, 0.04)
    return [
        *(float(record.size), record.seconds, bits, record.fps, float(record.frames)),
        *(float(record.width), float(record.height), loud, record.audio_seconds, record.audio_seconds - record.seconds),
    ]


def _features(datamodule: ClipDataModule, part: str, inference: Inference) -> dict[str, Tensor]:
    """By name (N, D) float32 of the clips that can be read, and `label` (N,) int64; `file` where clips are files."""
    columns: dict[str, list[Tensor]] = {"pictures": [], "sound": [], "has_sound": [], "label": [], "scored": []}
    for _, batch in inference.batches(datamodule, part):
        columns["pictures"].append(picture_features(batch))
        columns["sound"].append(sound_features(batch))
        columns["has_sound"].append(batch["has_audio"].float()[:, None])
        columns["label"].append(batch["label"])
        columns["scored"].append(batch["clip_id"])
    whole = {name: torch.cat(values) for name, values in columns.items()}
    scored = whole.pop("scored")
    whole = {name: value[scored >= 0] for name, value in whole.items()}
    entries = getattr(datamodule.splits, part)
    if all(isinstance(entry.path, str | Path) for entry in entries):
        files = inference.track(entries, f"Inspecting {part} files")
        whole["file"] = torch.tensor([file_features(Path(entry.path)) for entry in files])[scored[scored >= 0]]
    return whole


def controls(datamodule: ClipDataModule, progress: bool = False) -> dict[str, float]:
    """Test accuracies of linear models that see next to nothing.

    Args:
        datamodule: of the data set, with one segment and one crop.
        progress: show how far it is.

    Returns:
        By control: `chance`; `has_sound`, from whether a clip has sound and nothing else; `file/sound` and
        `file/silent`, from properties of files (where clips are files), among the clips with and without sound;
        `pictures` and `sound`, linear models on simple features, and `pictures/...`, `sound/...` of these subsets.
    """
    # Clips that cannot be read have been judged by those who trained on them.
    inference = Inference("cpu", max_unreadable=1.0, progress=progress)
    parts = {part: _features(datamodule, part, inference) for part in ("train", "test")}
    local = all("file" in part for part in parts.values())

    def accuracy(name: str, chosen: Callable[[dict[str, Tensor]], Tensor]) -> float:
        train, test = ((p[name][chosen(p)], p["label"][chosen(p)]) for p in (parts["train"], parts["test"]))
        return linear_accuracy(train, test, len(datamodule.classes))

    everything = {"": lambda p: p["label"] >= 0}
    halves = {"/sound": lambda p: p["has_sound"][:, 0] > 0, "/silent": lambda p: p["has_sound"][:, 0] == 0}
    results = {"chance": 1 / len(datamodule.classes)}
    for name, subsets in (
        ("has_sound", everything),
        ("file", halves if local else {}),
        ("pictures", everything | halves),
        ("sound", everything | halves),
    ):
        for subset, chosen in subsets.items():
            if all(chosen(part).any() for part in parts.values()):
                results[name + subset] = accuracy(name, chosen)
    return results
