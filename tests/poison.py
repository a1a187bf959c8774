"""A callback that makes the loss NaN in given steps, by pictures that are no numbers."""

from lightning.pytorch.callbacks import Callback


class Poison(Callback):
    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step in self.steps:
            batch["video"].fill_(float("nan"))
