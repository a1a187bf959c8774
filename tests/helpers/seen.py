"""Callbacks that write down what is trained with, what is validated, and what is tested."""

import json
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback


class Seen(Callback):
    """Lines of epoch and clips in a file of each process; the clips of a validation are null."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def _write(self, trainer, clips) -> None:
        with (self.folder / f"seen{trainer.global_rank}.jsonl").open("a") as stream:
            print(json.dumps([trainer.current_epoch, clips]), file=stream)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self._write(trainer, batch["clip_id"].tolist())

    def on_validation_end(self, trainer, pl_module) -> None:
        self._write(trainer, None)


class Tested(Callback):
    """The weights that are tested."""

    def __init__(self, file: str) -> None:
        self.file = file

    def on_test_start(self, trainer, pl_module) -> None:
        torch.save(pl_module.state_dict(), self.file)
