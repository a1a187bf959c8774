"""Runs that save by the clock and end in time: at SIGTERM, SIGUSR1, SIGUSR2 and Ctrl-C."""

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint

from avmae.errors import Interrupted
from avmae.runs.folder import LAST
from avmae.runs.scheduler import queue_again
from avmae.training.lightning_private import (
    count_epoch_as_started,
    leave_signals_alone,
    log_step_now,
    saved_by_another,
)
from avmae.training.report import StepReport

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that end a run; of several the last counts: that the time is nearly up, before that it is."""
SAVE = 1
"""A wish to save and train on; a wish to end is larger, by 1 + the signal's place in `NUMBERS`."""


class SaveInTime(Checkpoint):
    """Saves every so many minutes, at the run's end, and when SIGTERM, SIGUSR1, SIGUSR2 or Ctrl-C ends it.

    A signal that reaches any process ends all of them after the same step; `Interrupted` then has the exit code that a
    shell would see, 128 + the signal's number. After SIGUSR1 and SIGUSR2 the scheduler is asked to queue the job again,
    see `queue_again`. A signal during validation waits for its end, and one during accumulation for the step; a second
    Ctrl-C does not wait. Processes tell each other in the step's report.

    It is a `Checkpoint` so that Lightning calls it after all other callbacks, whose state it saves.

    Args:
        folder: where `last.ckpt` is written.
        minutes: from one save by the clock to the next; null for none.
    """

    def __init__(self, folder: str, minutes: float | None = 60.0) -> None:
        # As Lightning names checkpoints.
        self.path = os.path.realpath(Path(folder, LAST))
        self.seconds = minutes * 60 if minutes is not None else float("inf")
        self._signal = 0
        self._handlers: dict[signal.Signals, Any] = {}
        self._tests = StepReport()
        self._just_saved = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        leave_signals_alone(trainer)
        # A folder that is named by the time may differ between processes.
        self.path = trainer.strategy.broadcast(self.path)
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._receive) for number in NUMBERS}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        wish = SAVE + 1 + NUMBERS.index(signal.Signals(number))
        # The launcher of several processes hands a terminal's Ctrl-C on to those that have got it already.
        if number == signal.SIGINT and wish == self._signal and "RANK" not in os.environ:
            raise KeyboardInterrupt
        self._signal = max(wish, self._signal)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved = time.monotonic()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Have the run's other checkpoints where they are now, for its folder may have been moved."""
        folder = os.path.dirname(self.path)
        for state in checkpoint["callbacks"].values():
            if os.path.basename(state.get("dirpath") or "") == os.path.basename(folder):
                state["dirpath"] = folder
                for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
                    state[key] = state[key] and os.path.join(folder, os.path.basename(state[key]))
                best = state["best_k_models"].items()
                state["best_k_models"] = {os.path.join(folder, os.path.basename(path)): score for path, score in best}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        count_epoch_as_started(trainer)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        _tell(pl_module.report, self._wish(), pl_module.device)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Save if any process wishes so, of several as of the step before."""
        if (args[-1] + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        wish = self._wish() if trainer.world_size == 1 else _agreed(pl_module.report)
        # What the others wished while this step saved.
        repeated, self._just_saved = self._just_saved and wish == SAVE, False
        if not wish or repeated:
            return
        trainer.save_checkpoint(self.path)
        self._saved = time.monotonic()
        if wish == SAVE:
            self._just_saved = trainer.world_size > 1
        else:
            log_step_now(trainer)
            self._end(trainer, wish)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what the run ends with; end here if a signal came in validation, or too late for the last step."""
        wish, step = self._largest(trainer), trainer.global_step
        limits = ((trainer.fit_loop.epoch_progress.current.processed, trainer.max_epochs), (step, trainer.max_steps))
        ends = trainer.should_stop or any(0 <= (limit or -1) <= done for done, limit in limits)
        if (wish or ends) and not saved_by_another(trainer, self.path):
            trainer.save_checkpoint(self.path)
        if wish:
            self._end(trainer, wish)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End here if a signal came after the last epoch's end, before anything else is started."""
        if wish := self._largest(trainer):
            self._end(trainer, wish)

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """End here if any process got a signal; there is nothing to save, and a test is begun again."""
        _tell(self._tests, self._signal, pl_module.device)
        self._tests.hand_over(self._tests.reduce(trainer.world_size)[0])
        if wish := self._signal if trainer.world_size == 1 else _agreed(self._tests):
            self._end(trainer, wish)

    def _wish(self) -> int:
        return self._signal or (SAVE if time.monotonic() - self._saved > self.seconds else 0)

    def _largest(self, trainer: L.Trainer) -> int:
        """The largest wish to end of all processes, now; waits for them."""
        wish = torch.full((), self._signal, dtype=torch.int32, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(wish, reduce_op="max"))

    def _end(self, trainer: L.Trainer, wish: int) -> None:
        number = NUMBERS[wish - SAVE - 1]
        try:
            if trainer.is_global_zero:
                saved = "could not be saved" if self.path in trainer.strategy.checkpoint_io.failures else "is saved"
                print(f"{number.name}: step {trainer.global_step} {saved}; continue with resume=last", flush=True)
                queue_again(number, self._handlers.get(number))
        finally:
            # SLURM may end a job's other processes when one ends badly, and the first is not to be ended before this.
            trainer.strategy.barrier()
        raise Interrupted(128 + number)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the signals back; but a process that ends by one is left to end in its time."""
        if not isinstance(exception, Interrupted):
            self.teardown(trainer, pl_module, "")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


def _tell(report: StepReport, wish: int, device: torch.device) -> None:
    report.count("wishes", torch.arange(SAVE, SAVE + 1 + len(NUMBERS), device=device) == wish)


def _agreed(report: StepReport) -> int:
    """The largest wish of any process in the step before."""
    wishes = report.before.get("wishes", [])
    return max((SAVE + place for place, count in enumerate(wishes) if count), default=0)
