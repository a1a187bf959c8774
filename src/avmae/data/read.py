"""One file to what a model takes."""

from pathlib import Path

from torch import Tensor

from avmae.clip import ClipSpec
from avmae.data.augment import center_boxes
from avmae.data.dataset import collate, make_sample
from avmae.data.decode.window import Window, read_window
from avmae.data.transform import Batch, BatchTransform


def read_clip(path: str | Path, clip: ClipSpec | None = None, position: float = 0.5) -> dict[str, Tensor]:
    """Read one window of a file: the centre square of its frames, and its audio.

    Args:
        path: of any video file.
        clip: the model's, ``model.clip``; by default 16 frames at stride 4 and 224 px.
        position: of the window, from 0 for the first to 1 for the last.

    Returns:
        ``video`` (1, 3, T, H, W) and ``audio`` (1, 1, L, F), float32, normalised, and ``has_audio`` (1,) bool:
        the arguments of ``model.encode``.

    Raises:
        MediaError: the file is missing or no video that can be read.
    """
    clip = clip or ClipSpec()
    batch = window_batch(read_window(path, clip, position, clip.canvas), clip)
    return {"video": batch["video"], "audio": batch["audio"], "has_audio": batch["has_audio"]}


def window_batch(window: Window, clip: ClipSpec, crops: int = 1) -> Batch:
    """A window as a batch of its evenly spaced crops; the label is -1."""
    sample = make_sample(window, center_boxes(window.aspect, crops), label=-1)
    return BatchTransform(clip)(collate([sample]))
