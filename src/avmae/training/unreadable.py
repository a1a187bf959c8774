"""Clips that cannot be read: named, counted over all processes, and too many end the run."""

import sys
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from avmae.data.datamodule import Batch
from avmae.errors import InputError, printable


class UnreadableClips(Callback):
    """Names clips that could not be read at the end of each epoch, and stops a run in which too many are.

    All processes count together and stop together.

    Args:
        max_share: of all windows read in an epoch, a validation or a test that may fail.
    """

    def __init__(self, max_share: float = 0.05) -> None:
        self.max_share = max_share
        self._failed: dict[str, list[str]] = {"training": [], "validation": [], "test": []}
        self._read = dict.fromkeys(self._failed, 0)

    def _count(self, trainer: L.Trainer, part: str, batch: Batch, batches: int) -> None:
        self._failed[part] += batch["unreadable"]
        self._read[part] += batch["windows"]
        # After the same batches on all processes, which have equally many, and ever more rarely.
        if batches & (batches - 1) == 0:
            self._judge(trainer, part, ended=False)

    def _judge(self, trainer: L.Trainer, part: str, ended: bool = True) -> None:
        """Decide by what all processes together could not read, so that all go on or none does."""
        own = self._failed[part], self._read[part]
        every = [own] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(every, own)
        failed, read = [message for messages, _ in every for message in messages], sum(windows for _, windows in every)
        # Enough to tell a bad data set from a bad clip, long before a large epoch ends.
        if not ended and (read < 200 or len(failed) <= 2 * self.max_share * read):
            return
        self._failed[part], self._read[part] = [], 0
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

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._count(trainer, "training", batch, batch_idx + 1)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int, *_: int
    ) -> None:
        self._count(trainer, "validation", batch, batch_idx + 1)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int, *_: int
    ) -> None:
        self._count(trainer, "test", batch, batch_idx + 1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what was skipped."""
        self._judge(trainer, "training")

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what was not scored."""
        self._judge(trainer, "validation")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what was not scored."""
        self._judge(trainer, "test")
