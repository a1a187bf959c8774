"""Clips that cannot be read: named, counted over all processes, and too many end the run."""

import sys
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from avmae.errors import InputError, printable

PARTS = {"train": "training", "validate": "validation", "sanity_check": "validation", "test": "test"}
"""Lightning's stages, in words."""


class UnreadableClips(Callback):
    """Names clips that could not be read at the end of each epoch, and stops a run in which too many are.

    All processes count together and stop together.

    Args:
        max_share: of all windows read in an epoch, a validation or a test that may fail.
    """

    def __init__(self, max_share: float = 0.05) -> None:
        self.max_share = max_share
        self._found: dict[str, tuple[list[str], int]] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        _, batch, number, *_ = args
        part = PARTS[trainer.state.stage]
        failed, read = self._found.get(part, ([], 0))
        self._found[part] = failed + batch["unreadable"], read + batch["windows"]
        # After the same batches on all processes, which have equally many, and ever more rarely.
        if number & (number + 1) == 0:
            self._judge(trainer, part, ended=False)

    on_validation_batch_end = on_test_batch_end = on_train_batch_end

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._judge(trainer, PARTS[trainer.state.stage])

    on_validation_epoch_end = on_test_epoch_end = on_train_epoch_end

    def _judge(self, trainer: L.Trainer, part: str, ended: bool = True) -> None:
        """Decide by what all processes together could not read, so that all continue or none does."""
        own = self._found.get(part, ([], 0))
        every = [own] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(every, own)
        failed, read = [message for messages, _ in every for message in messages], sum(windows for _, windows in every)
        # Enough to tell a bad data set from a bad clip, long before a large epoch ends.
        if not ended and (read < 200 or len(failed) <= 2 * self.max_share * read):
            return
        self._found.pop(part, None)
        if not failed:
            return
        clips = sorted(set(failed))
        text = f"{part}: {len(failed)} of {read} windows cannot be read ({len(clips)} clips), for example:\n  "
        text += "\n  ".join(clips[:5])
        if len(failed) > self.max_share * read:
            raise InputError(
                f"{text}\nmore than callbacks.unreadable.max_share={self.max_share:g} of the data cannot be read; "
                "repair it, take the clips off the lists, or raise the share"
            )
        if trainer.is_global_zero:
            print(f"skipped: {printable(text)}", file=sys.stderr)
