"""Callbacks that spoil given steps: NaN in the loss, with its gradient or not, or in a weight; a signal; no room."""

import errno
import os
from pathlib import Path

import torch.distributed.checkpoint as dcp
from lightning.pytorch.callbacks import Callback


class Poison(Callback):
    """Pictures that are no numbers."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step in self.steps:
            batch["video"].fill_(float("nan"))


class PoisonLoss(Callback):
    """The loss of one batch of the last process, with the gradient that it had."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        first = trainer.fit_loop.epoch_loop.batch_idx % trainer.accumulate_grad_batches == 0
        if first and trainer.global_rank == trainer.world_size - 1 and trainer.global_step in self.steps:
            loss.data.fill_(float("nan"))


class PoisonWeight(Callback):
    """A weight of the last process, in the part that it alone has."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_rank == trainer.world_size - 1 and trainer.global_step == self.step:
            next(pl_module.parameters()).data.to_local().fill_(float("nan"))


class NoRoom(Callback):
    """A disk that is too full for shards from a step on, until a checkpoint on it is deleted."""

    def __init__(self, step: int, taken_by: str) -> None:
        self.step, self.taken_by = step, Path(taken_by)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            save = dcp.save

            def full(*args, **kwargs) -> None:
                if self.taken_by.exists():
                    print("no room")
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                save(*args, **kwargs)

            dcp.save = full


class Signalled(Callback):
    """A signal that the last process gets after so many steps: in the next one, in validation or in the test."""

    def __init__(self, number: int, step: int, during: str = "validation") -> None:
        self.number, self.step, self.during = number, step, during

    def _send(self, trainer, during: str) -> None:
        last = trainer.global_rank == trainer.world_size - 1
        if last and (trainer.global_step, during) == (self.step, self.during):
            os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self._send(trainer, "training")

    def on_validation_start(self, trainer, pl_module) -> None:
        self._send(trainer, "validation")

    def on_test_start(self, trainer, pl_module) -> None:
        self._send(trainer, "test")
