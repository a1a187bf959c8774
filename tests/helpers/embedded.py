"""Reads what the embedded data sets write."""

from pathlib import Path

import av
import numpy as np


def read_list(root: Path, name: str) -> list[list[str]]:
    return [line.split(" ") for line in (root / "ucfTrainTestlist" / name).read_text().splitlines()]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def decode_frames(path: Path, pixels: str = "gray") -> tuple[np.ndarray, np.ndarray]:
    """Timestamps in seconds, and frames."""
    with av.open(str(path)) as container:
        frames = [(frame.time, frame.to_ndarray(format=pixels)) for frame in container.decode(video=0)]
    return np.array([time for time, _ in frames]), np.stack([image for _, image in frames]).astype(float)


def decode_audio(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Timestamps in seconds, and samples."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    audio = np.concatenate([frame.to_ndarray()[0] for frame in frames]).astype(float)
    return frames[0].time + np.arange(audio.size) / frames[0].sample_rate, audio


def leave_one_out_accuracy(features: np.ndarray, labels: np.ndarray) -> float:
    """Of a nearest-class-mean classifier."""
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    hits = 0
    for index, label in enumerate(labels):
        others = np.arange(len(labels)) != index
        means = {c: features[others & (labels == c)].mean(axis=0) for c in set(labels)}
        hits += min(means, key=lambda c: np.sum((features[index] - means[c]) ** 2)) == label
    return hits / len(labels)
