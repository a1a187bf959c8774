"""A callback that counts what training processes tell each other besides DDP's gradients, which go by C++."""

import json
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback

NAMES = (
    "all_reduce",
    "barrier",
    "monitored_barrier",
    "broadcast",
    "broadcast_object_list",
    "reduce",
    "gather",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
)


class Counted(Callback):
    """Writes the collectives of each optimiser step, by its batches, to `collectives.json`."""

    def __init__(self) -> None:
        self.steps: list[list[str]] = [[]]

    def on_train_start(self, trainer, pl_module) -> None:
        for name in NAMES:
            setattr(torch.distributed, name, self._counting(name, getattr(torch.distributed, name)))

    def _counting(self, name, function):
        def call(*args, **kwargs):
            self.steps[-1].append(name)
            return function(*args, **kwargs)

        return call

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.steps.append([])

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        if trainer.is_global_zero:
            Path(trainer.default_root_dir, "collectives.json").write_text(json.dumps(self.steps))
