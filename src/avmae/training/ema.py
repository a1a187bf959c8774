"""An exponential moving average of the weights, beside those that are trained."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import AveragedModel

from avmae.errors import InputError


class AveragedWeights(WeightAveraging):
    """Keeps the average, which is what is validated, tested and saved as the model, and the model once training ends.

    The decay of an update is min(decay, (1 + t) / (10 + t)), with t the updates before it, so that a short run does
    not end near the weights it started from (TensorFlow's `ExponentialMovingAverage`). Buffers are no weights and stay
    as they are; a skipped step is no update. All of it is computed on the model's device, which nothing waits for.

    Args:
        decay: that is reached after about 9 / (1 - decay) updates.

    Raises:
        InputError: the decay is out of range.
    """

    # Private in Lightning 2.6, which updates where the processor waits for the device, and swaps and saves the first.
    _average_model: AveragedModel | None
    _latest_update_step: int

    def __init__(self, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"callbacks.ema.decay={decay} must lie in [0, 1)")
        super().__init__(use_buffers=False)
        self.decay = decay

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start from the weights at hand, before a checkpoint's take their place."""
        if stage == "fit":
            self._average_model = AveragedModel(pl_module)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Follow the model to its device."""
        assert self._average_model is not None
        self._average_model.to(pl_module.device)
        # Checkpoints of versions that averaged buffers, too, have the model's own beside them.
        for averaged, buffer in zip(self._average_model.module.buffers(), pl_module.buffers(), strict=True):
            averaged.copy_(buffer)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Update after each step, not after each of its batches."""
        if trainer.global_step <= self._latest_update_step:
            return
        self._latest_update_step = trainer.global_step
        # Not AveragedModel's: that one reads its count on the processor, and takes it for known how far to go.
        assert self._average_model is not None
        updates, taken = self._average_model.n_averaged, ~pl_module.skipped
        rate = (9 / (10 + updates)).clamp(min=1 - self.decay) * taken
        averages = [parameter.detach() for parameter in self._average_model.parameters()]
        ways = torch._foreach_sub([parameter.detach() for parameter in pl_module.parameters()], averages)
        torch._foreach_mul_(ways, rate)
        torch._foreach_add_(averages, ways)
        updates += taken

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Make the average the model also where no step was left to train, and leave alone what a test loads."""
        if stage == "fit" and self._average_model is not None:
            self._copy_average_to_current(pl_module)
            self._average_model = None
