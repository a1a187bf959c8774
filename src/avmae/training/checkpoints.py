"""Checkpoints that are whole or not there, files and folders alike.

One is written beside its place under a name that no other has, has reached the disk, and only then is renamed. The
checkpoint that `last.ckpt` replaces is kept as `previous.ckpt`, so that there is a whole one at every moment.
"""

import errno
import os
import shutil
import sys
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor
from torch.distributed.tensor import DTensor

from avmae.runs.folder import LAST, PREVIOUS, SHARDED


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints that are one file each.

    One that cannot be written (a full disk, a folder that is gone) or that has weights that are not finite is reported
    and left out: training continues, and the next save tries again.

    Attributes:
        failures: by path, why the newest attempt to write it failed.
    """

    def __init__(self) -> None:
        self.failures: dict[str, str] = {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path, cause = Path(path), None
        try:
            if name := nonfinite(checkpoint["state_dict"]):
                raise FloatingPointError(f"{name} is not finite")
            try:
                _save_file(checkpoint, path)
            except (OSError, RuntimeError) as error:
                if not (is_full(error) and make_room(path)):
                    raise
                _save_file(checkpoint, path)
        # torch's writer makes a RuntimeError of what goes wrong in the file.
        except (OSError, RuntimeError, FloatingPointError) as error:
            cause = str(error.__context__ or error).splitlines()[0]
        self.note(path, cause)

    def note(self, path: Path, cause: str | None) -> None:
        """Note whether a checkpoint could be written, and say why not."""
        self.failures.pop(str(path), None)
        if cause is not None:
            self.failures[str(path)] = cause
            print(f"cannot save {path}: {cause}; training continues, the next save tries again", file=sys.stderr)


def loaded_at_first(checkpoint: str | Path) -> list[str]:
    """Names of the network's tensors that came from weights when a checkpoint's run began; older ones do not say."""
    path = Path(checkpoint)
    file = path / SHARDED if path.is_dir() else path
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True).get("loaded", [])


def nonfinite(weights: Mapping[str, Tensor]) -> str | None:
    """The first tensor of which this process's part is not finite, by name."""
    for name, value in weights.items():
        part = value.to_local() if isinstance(value, DTensor) else value
        if part.is_floating_point() and not bool(part.isfinite().all()):
            return name
    return None


def is_full(error: BaseException) -> bool:
    """Whether a disk without room is what went wrong."""
    return any(getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT) for e in (error, error.__context__))


def make_room(path: Path) -> bool:
    """Delete the checkpoint before the newest, which stays; False if there is none."""
    previous = path.with_name(PREVIOUS)
    there = previous.exists()
    remove(previous)
    return there


def beside(path: Path) -> Path:
    """A new name for what is to be `path`; what saves left there that were killed is deleted, if it can be."""
    with suppress(OSError):
        for old in path.parent.glob(f".{path.name}.*"):
            remove(old)
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")


def write_synced(content: Mapping[str, Any], file: Path) -> None:
    """Write with `torch.save`, and have it on the disk."""
    with file.open("wb") as stream:
        torch.save(content, stream)
        stream.flush()
        os.fsync(stream.fileno())


def publish(new: Path, path: Path) -> None:
    """Put a whole checkpoint, a file or a folder, in its place; what `LAST` was becomes `PREVIOUS`."""
    if path.name == LAST and path.exists():
        remove(path.with_name(PREVIOUS))
        path.rename(path.with_name(PREVIOUS))
    elif path.is_dir() or new.is_dir():
        # Folders do not replace each other.
        remove(path)
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove(path: Path) -> None:
    """Delete a checkpoint, a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _save_file(checkpoint: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = beside(path)
    try:
        write_synced(checkpoint, new)
        publish(new, path)
    finally:
        # It is left if anything went wrong.
        new.unlink(missing_ok=True)
