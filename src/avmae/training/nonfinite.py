"""Steps whose loss or gradient is not finite: they change no weight, are counted, and too many in a row end the run."""

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from avmae.data.datamodule import Batch
from avmae.errors import InputError
from avmae.training.report import StepReport


def skip_if(failed: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Have the optimiser's step that is under way change nothing where `failed`, 0-d bool and alike on all processes.

    A fused optimiser does so by itself, and the processor need not know. Of others (Muon), the processor waits for the
    answer, and takes the gradients away: an optimiser passes over parameters that have none.
    """
    if all(group.get("fused") for group in optimizer.param_groups):
        # What torch's own gradient scaler uses.
        optimizer.found_inf = failed.float()  # type: ignore[attr-defined]
    elif failed:
        optimizer.zero_grad(set_to_none=True)


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
        self._report = StepReport()

    def state_dict(self) -> dict[str, Any]:
        """The count, with the step that was not judged yet."""
        return {"total": self._total + bool(self._report.latest().get("skipped"))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._total = state_dict["total"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._report = pl_module.report

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """See how the step before went."""
        self._clips.append(batch["clip_id"])
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        self._judge(trainer)
        self._before, self._clips = (trainer.global_step, trainer.current_epoch, self._clips), []
        # Lightning makes a tensor on the device of it, which is not for every step.
        if trainer.global_step % trainer.log_every_n_steps == 0 or trainer.is_last_batch:
            pl_module.log("train/skipped", float(self._total))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """See how the last step went."""
        self._report.take()
        self._judge(trainer)

    def _judge(self, trainer: L.Trainer) -> None:
        skipped = bool(self._report.before.get("skipped"))
        self._row, self._total = (self._row + 1) * skipped, self._total + skipped
        if not skipped:
            return
        step, epoch, clips = self._before
        file = Path(trainer.default_root_dir, "skipped.jsonl")
        seen = trainer.strategy.all_gather(torch.cat(clips)).flatten().unique().tolist()
        if trainer.is_global_zero:
            entries = trainer.datamodule.splits.train
            line = {"step": step, "epoch": epoch, "clips": [str(entries[index]) for index in seen]}
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
                "optim.base_lr, optim.clip_norm=1, or trainer.precision=32-true, and continue with resume=last; "
                "callbacks.nonfinite.limit is how many are allowed"
            )
