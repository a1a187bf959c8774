"""Steps whose loss or gradient is not finite: they change no weight, are counted, and too many in a row end the run."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.distributed.tensor import DTensor

from avmae.data.datamodule import Batch
from avmae.errors import InputError
from avmae.training.late import LateNumber


def skip_if(failed: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Have the optimiser's step that is under way change nothing if it is to be skipped; the processor need not know.

    A fused optimiser does so by itself. Of others, weights and state are copied, and put back after the step; on a
    device, what they keep in the processor's memory is not, which is AdamW's count of steps.

    Args:
        failed: 0-d bool, the same on all processes.
        optimizer: whose gradients are there.
    """
    if all(group.get("fused") for group in optimizer.param_groups):
        # What torch's own gradient scaler uses.
        optimizer.found_inf = failed.float()  # type: ignore[attr-defined]
        return
    if failed.device.type == "cpu" and not failed:
        return
    before = {key: value.clone() for key, value in _changed(optimizer, failed.device)}

    def put_back(*_: Any) -> None:
        # While hooks are called, the last one alone may go; this is it.
        hook.remove()
        for key, value in _changed(optimizer, failed.device):
            # State that was not there yet starts with zeros.
            value.copy_(torch.where(failed, before.get(key, torch.zeros_like(value)), value))

    hook = optimizer.register_step_post_hook(put_back)


def _changed(optimizer: torch.optim.Optimizer, device: torch.device) -> Iterator[tuple[tuple[int, str], Tensor]]:
    """What a step changes on a device, this process's part of it."""
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        if parameter.grad is None:
            continue
        for name, value in {"": parameter, **optimizer.state.get(parameter, {})}.items():
            if isinstance(value, Tensor) and value.device == device:
                value = value.detach()
                yield (id(parameter), name), value.to_local() if isinstance(value, DTensor) else value


class NonFiniteSteps(Callback):
    """Counts skipped steps in `train/skipped`, names their clips, and ends a run that does nothing but skip.

    Each skipped step becomes a line of `skipped.jsonl` in the run's folder: step, epoch, and the clips of all
    processes. All processes skip the same steps, so all of them end at the same one.

    Args:
        limit: of skipped steps in a row.
    """

    def __init__(self, limit: int = 20) -> None:
        if limit < 1:
            raise InputError("callbacks.nonfinite.limit must be at least 1")
        self.limit = limit
        self._total = self._row = 0
        self._clips: list[Tensor] = []
        self._before: tuple[int, int, list[Tensor]] = (0, 0, [])
        self._late = LateNumber()

    def state_dict(self) -> dict[str, Any]:
        """The count, with the step that was not judged yet."""
        return {"total": self._total + bool(self._late.peek())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on."""
        self._total = state_dict["total"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """See how the step before went."""
        self._clips.append(batch["clip_id"])
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        before = self._late.exchange(pl_module.skipped)
        self._judge(trainer, before)
        self._before = (trainer.global_step, trainer.current_epoch, self._clips)
        self._clips = []
        # Lightning makes a tensor on the device of it, which is not for every step.
        if trainer.global_step % trainer.log_every_n_steps == 0 or trainer.is_last_batch:
            pl_module.log("train/skipped", float(self._total))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """See how the last step went."""
        self._judge(trainer, self._late.take())

    def _judge(self, trainer: L.Trainer, skipped: float | None) -> None:
        if not skipped:
            self._row = 0
            return
        self._row += 1
        self._total += 1
        step, epoch, clips = self._before
        file = Path(trainer.default_root_dir, "skipped.jsonl")
        seen = trainer.strategy.all_gather(torch.cat(clips)).flatten().unique().tolist()
        if trainer.is_global_zero:
            entries = trainer.datamodule.splits.train
            line = {"step": step, "epoch": epoch, "clips": [str(entries[index].path) for index in seen]}
            try:
                with file.open("a") as stream:
                    stream.write(json.dumps(line) + "\n")
            except OSError as error:
                print(f"cannot write {file}: {error}", file=sys.stderr)
            if self._row == 1:
                print(f"step {step} skipped: loss or gradient not finite; its clips are in {file}", file=sys.stderr)
        if self._row >= self.limit:
            raise InputError(
                f"loss or gradient were not finite in {self._row} steps in a row, up to step {step}; none of them "
                f"changed a weight, and the last checkpoint is kept. {file} names their clips. Try a lower "
                "optim.base_lr, optim.clip_norm=1, or trainer.precision=32-true, and go on with resume=last; "
                "callbacks.nonfinite.limit is how many are borne"
            )
