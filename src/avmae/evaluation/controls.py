"""What a data set gives away without being understood: linear models on simple features.

A class that can be told from the size of its file, or from whether there is audio at all, could be mistaken for
something heard or seen. `pictures` and `sound` say how much so simple a look at the video and the audio tells.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from avmae.data.datamodule import Batch, ClipDataModule
from avmae.data.manifest import SILENCE, inspect
from avmae.evaluation.batches import Inference
from avmae.evaluation.probes import linear_hits

CONTROLS = (
    *("has_sound", "file/sound", "file/silent", "pictures", "pictures/sound", "pictures/silent"),
    *("sound", "sound/sound", "sound/silent"),
)


def video_features(batch: Batch) -> Tensor:
    """Where brightness is and where it changes, on 8x8 cells, and how fast: (B, 128 + T)."""
    brightness = batch["video"].mean(1)
    cells = F.adaptive_avg_pool2d(brightness, 8)
    change = F.adaptive_avg_pool2d(brightness.diff(dim=1).abs(), 8)
    rhythm = torch.fft.rfft(change.flatten(2).mean(2), dim=1).abs()
    return torch.cat([cells.std(1).flatten(1), change.mean(1).flatten(1), rhythm], 1)


def audio_features(batch: Batch) -> Tensor:
    """Mean and standard deviation of each mel bin, and how fast loudness changes; zeros for clips without audio."""
    mel = batch["audio"][:, 0]
    rhythm = torch.fft.rfft(mel.mean(2), dim=1).abs()[:, 1:33]
    features = torch.cat([mel.mean(1), mel.std(1), mel[:, : mel.shape[1] // 2].mean(1), rhythm], 1)
    return features * batch["has_audio"][:, None]


def file_features(path: Path) -> list[float]:
    """What is known of a file without understanding it: size, length, rate, shape, level and length of its audio."""
    record = inspect(path.parent, path.name)
    loud = record.audio_level if record.has_audio else SILENCE
    bits = record.size / max(record.seconds, 0.04)
    return [
        *(float(record.size), record.seconds, bits, record.fps, float(record.frames)),
        *(float(record.width), float(record.height), loud, record.audio_seconds, record.audio_seconds - record.seconds),
    ]


def controls(datamodule: ClipDataModule, progress: bool = False) -> dict[str, float]:
    """Test accuracies of linear models that see next to nothing, of one segment and one crop of each clip.

    Returns:
        By control: `chance`; `has_sound`, from whether a clip has audio and nothing else; `file/sound` and
        `file/silent`, from properties of files (where clips are files), among the clips with and without audio;
        `pictures` and `sound`, linear models on simple features of video and audio, and `pictures/...`, `sound/...` of
        these subsets.
    """
    # Clips that cannot be read have been judged by those who trained on them.
    inference = Inference("cpu", max_unreadable=1.0, progress=progress)
    parts = [_features(datamodule, part, inference) for part in ("train", "test")]
    results = {"chance": 1 / len(datamodule.classes)}
    for control in CONTROLS:
        name, _, subset = control.partition("/")
        chosen = [p["has_sound"][:, 0] == (subset == "sound") if subset else p["label"] >= 0 for p in parts]
        if all(name in part and rows.any() for part, rows in zip(parts, chosen, strict=True)):
            train, test = ((p[name][rows], p["label"][rows]) for p, rows in zip(parts, chosen, strict=True))
            hits = linear_hits(train, test, len(datamodule.classes))
            results[control] = float(hits.double().mean())
    return results


def _features(datamodule: ClipDataModule, part: str, inference: Inference) -> dict[str, Tensor]:
    """By name (N, D) float32 of the clips that can be read, and `label` (N,) int64; `file` where clips are files."""
    columns: dict[str, list[Tensor]] = {}
    for _, batch in inference.batches(datamodule, part):
        found = {"pictures": video_features(batch), "sound": audio_features(batch), "label": batch["label"]}
        found |= {"has_sound": batch["has_audio"].float()[:, None], "clip_id": batch["clip_id"]}
        for name, value in found.items():
            columns.setdefault(name, []).append(value[batch["clip_id"] >= 0])
    whole = {name: torch.cat(values) for name, values in columns.items()}
    entries = getattr(datamodule.splits, part)
    if all(isinstance(entry.path, str | Path) for entry in entries):
        files = inference.track(entries, f"Inspecting {part} files")
        whole["file"] = torch.tensor([file_features(Path(entry.path)) for entry in files])[whole["clip_id"]]
    return whole
