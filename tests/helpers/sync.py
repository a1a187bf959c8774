"""A callback under which a step that makes the processor wait for the GPU is an error."""

import torch
from lightning.pytorch.callbacks import Callback


class NothingWaits(Callback):
    """From a batch's start to its end, but for the first, which allocates, and each epoch's last, which logs.

    It prints how many batches it has watched.
    """

    def __init__(self) -> None:
        self.watched = 0

    def _forbid(self, trainer, mode: str) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.set_sync_debug_mode(mode)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step and not trainer.is_last_batch:
            self.watched += 1
            self._forbid(trainer, "error")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self._forbid(trainer, "default")

    def on_exception(self, trainer, pl_module, exception) -> None:
        self._forbid(trainer, "default")

    def on_train_end(self, trainer, pl_module) -> None:
        print(f"watched {self.watched} batches")
