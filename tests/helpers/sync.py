"""A callback under which a step that makes the processor wait for the device is an error."""

from contextlib import ExitStack

import torch
from lightning.pytorch.callbacks import Callback
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "unique_consecutive", "equal")
"""Operations whose result the processor needs before it can go on."""


class NothingRead(TorchDispatchMode):
    """Makes an operation that would wait for a GPU an error on the CPU, too."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        # How many elements a mask chooses is read back within the operation.
        chosen = args[1] if name in ("index", "index_put", "index_put_") else ()
        masked = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in chosen)
        if name in WAITING or masked:
            raise RuntimeError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


class NothingWaits(Callback):
    """From a batch's start to its end, but for the first, which allocates, and each epoch's last, which logs.

    It prints how many batches it has watched.
    """

    def __init__(self) -> None:
        self.watched = 0
        self.watching = ExitStack()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step and not trainer.is_last_batch:
            self.watched += 1
            if trainer.strategy.root_device.type == "cuda":
                torch.cuda.set_sync_debug_mode("error")
                self.watching.callback(torch.cuda.set_sync_debug_mode, "default")
            else:
                self.watching.enter_context(NothingRead())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.watching.close()

    def on_exception(self, trainer, pl_module, exception) -> None:
        self.watching.close()

    def on_train_end(self, trainer, pl_module) -> None:
        print(f"watched {self.watched} batches")
