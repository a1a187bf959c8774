"""Callbacks that spoil given steps: a loss that is NaN with its gradient, or by itself, and a signal."""

import os

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


class Signalled(Callback):
    """A signal that the last process gets after so many steps: in the next one, or in validation."""

    def __init__(self, number: int, step: int, validation: bool = True) -> None:
        self.number, self.step, self.validation = number, step, validation

    def _send(self, trainer, validation: bool) -> None:
        last = trainer.global_rank == trainer.world_size - 1
        if last and (trainer.global_step, validation) == (self.step, self.validation):
            os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self._send(trainer, False)

    def on_validation_start(self, trainer, pl_module) -> None:
        self._send(trainer, True)
