"""Callbacks that spoil given steps: a loss that is NaN with its gradient, or by itself."""

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
