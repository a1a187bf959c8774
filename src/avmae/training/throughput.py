"""Speed of training, and how much of the time it waits for data."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from avmae.data.datamodule import Batch


class Throughput(Callback):
    """Logs `train/clips_per_second` over all processes and `train/data_wait`, the share of time spent waiting for data.

    Both cover the steps since the last log, so nothing has to wait for the device; neither covers validation or what
    else comes between epochs.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = self._ended = time.perf_counter()
        self._waited, self._clips = 0.0, 0

    on_train_epoch_start = on_validation_end = on_train_start

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Time since the last batch went into reading this one."""
        self._waited += time.perf_counter() - self._ended

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._ended = time.perf_counter()
        self._clips += batch["label"].shape[0] * trainer.world_size
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if (stepped and trainer.global_step % trainer.log_every_n_steps == 0) or trainer.is_last_batch:
            elapsed = self._ended - self._since
            figures = {"train/clips_per_second": self._clips / elapsed, "train/data_wait": self._waited / elapsed}
            pl_module.log_dict(figures)
            self._since, self._waited, self._clips = self._ended, 0.0, 0
