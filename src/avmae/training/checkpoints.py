"""Checkpoints that are whole or not there, saved after so many minutes and when a signal ends the run."""

import errno
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor
from torch.distributed.tensor import DTensor

from avmae.data.datamodule import Batch
from avmae.errors import Interrupted
from avmae.runs import LAST, PREVIOUS, SHARDED, queue_again
from avmae.training.late import LateNumber

SPARE = f".{PREVIOUS}.tmp"
"""What is to be `PREVIOUS` in a moment."""
SAVE = 1
"""A wish to save and go on; wishes to end are larger: by how much is the signal's place in `SaveInTime.SIGNALS`."""


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, has it on the disk, and only then puts it there.

    The checkpoint that `last.ckpt` replaces is kept as `previous.ckpt`. One that cannot be written (a full disk, a
    folder that is gone) or that has weights that are not finite is reported and left out: training goes on, and the
    next save tries again.

    Attributes:
        failures: by path, why the newest attempt to write it failed.
    """

    def __init__(self) -> None:
        self.failures: dict[str, str] = {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint; see the class."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        try:
            if name := nonfinite(checkpoint["state_dict"]):
                raise FloatingPointError(f"{name} is not finite")
            try:
                write_whole(checkpoint, path)
            except (OSError, RuntimeError) as error:
                if not is_full(error) or not (path.parent / PREVIOUS).exists():
                    raise
                # What is the newest stays.
                remove(path.parent / PREVIOUS)
                write_whole(checkpoint, path)
        # torch's writer makes a RuntimeError of what goes wrong in the file.
        except (OSError, RuntimeError, FloatingPointError) as error:
            cause = str(error.__context__ or error).splitlines()[0]
            self.failures[str(path)] = cause
            print(f"cannot save {path}: {cause}; training goes on, the next save tries again", file=sys.stderr)
        else:
            self.failures.pop(str(path), None)


def loaded_at_first(checkpoint: str | Path) -> list[str]:
    """Names of the network's tensors that came from weights when a checkpoint's run began; older ones do not say."""
    path = Path(checkpoint)
    file = path / SHARDED if path.is_dir() else path
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True).get("loaded", [])


def nonfinite(weights: Mapping[str, Tensor]) -> str | None:
    """The first tensor of which this process's part is not finite, by name."""
    for name, value in weights.items():
        part = value.to_local() if isinstance(value, DTensor) else value
        if part.is_floating_point() and not bool(part.isfinite().all()):
            return name
    return None


def is_full(error: BaseException) -> bool:
    """Whether a disk without room is what went wrong."""
    return any(getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT) for e in (error, error.__context__))


def write_whole(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Have a file on the disk before it takes its place; of one that is `LAST`, the one before becomes `PREVIOUS`."""
    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as stream:
            torch.save(checkpoint, stream)
            stream.flush()
            os.fsync(stream.fileno())
        if path.is_dir():
            # Of a run that was sharded before.
            make_way(path)
        elif path.name == LAST and path.exists():
            if path.with_name(PREVIOUS).is_dir():
                remove(path.with_name(PREVIOUS))
            spare = path.with_name(SPARE)
            remove(spare)
            try:
                os.link(path, spare)
            except OSError:
                # A file system without hard links: for a moment there is no LAST, and PREVIOUS is what is gone on with.
                spare = path
            spare.replace(path.with_name(PREVIOUS))
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def make_way(path: Path) -> None:
    """Have a checkpoint, a file or a folder, out of the place of one of the other kind: `LAST` becomes `PREVIOUS`."""
    if path.name == LAST:
        remove(path.with_name(PREVIOUS))
        path.replace(path.with_name(PREVIOUS))
    else:
        remove(path)


def remove(path: Path) -> None:
    """Delete a checkpoint, a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class SaveInTime(Checkpoint):
    """Saves every so many minutes, at the run's end, and when SIGTERM, SIGUSR1, SIGUSR2 or Ctrl-C ends it.

    A signal that reaches any process ends all of them after the same step; `Interrupted` then has the exit code that a
    shell would see, 128 + the signal's number. After SIGUSR1 and SIGUSR2 the scheduler is asked to queue the job again,
    see `queue_again`. A signal during validation waits for its end, and one during accumulation for the step; a second
    Ctrl-C does not wait.

    It is a `Checkpoint` so that Lightning calls it after all other callbacks, whose state it saves.

    Args:
        folder: where `last.ckpt` is written.
        minutes: from one save by the clock to the next; null for none.
    """

    # Of several, the last counts: that the time is nearly up, before that it is.
    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self, folder: str, minutes: float | None = 60.0) -> None:
        # As Lightning names checkpoints.
        self.path = os.path.realpath(Path(folder, LAST))
        self.seconds = minutes * 60 if minutes is not None else float("inf")
        self._received = 0
        self._handlers: dict[signal.Signals, Any] = {}
        self._decided = LateNumber()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take over the signals."""
        # Lightning's handler communicates from within the handler, which can lock up processes that communicate
        # already; the state it saves cannot be gone on with exactly; and its question to all processes before each
        # step waits for the device.
        trainer._signal_connector.register_signal_handlers = lambda: None
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        # A folder that is named by the time may differ between processes.
        self.path = trainer.strategy.broadcast(self.path)
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._receive) for number in self.SIGNALS}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
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
        """Put right how Lightning counts epochs.

        After a checkpoint of an epoch's last step it goes on in the next epoch without counting that as started, and a
        run that is resumed a second time would take the wrong clips.
        """
        loop = trainer.fit_loop
        if loop.restarted_mid_epoch and loop.epoch_progress.total.processed == loop.epoch_progress.total.ready:
            loop.reset_restart_stage()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        # The launcher of several processes hands a terminal's Ctrl-C on to those that have got it already.
        wish = SAVE + 1 + self.SIGNALS.index(signal.Signals(number))
        if number == signal.SIGINT and wish == self._received and "RANK" not in os.environ:
            raise KeyboardInterrupt
        self._received = max(wish, self._received)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Save if any process wishes so."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        wish = self._agreed(self._received or (SAVE if time.monotonic() - self._saved > self.seconds else 0), trainer)
        if not wish:
            return
        trainer.save_checkpoint(self.path)
        self._saved = time.monotonic()
        if wish == SAVE:
            # The others' of this step, too.
            self._decided.take()
        else:
            # Lightning logs the step after these hooks.
            trainer._logger_connector.on_batch_end()
            trainer._logger_connector.update_train_step_metrics()
            self._end(trainer, wish)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what the run ends with; end here if a signal came in validation, or too late for the last step."""
        wish = int(_largest(self._received, trainer))
        epochs = trainer.fit_loop.epoch_progress.current.processed
        limits = ((epochs, trainer.max_epochs), (trainer.global_step, trainer.max_steps))
        ends = trainer.should_stop or any(0 <= (limit or -1) <= done for done, limit in limits)
        if not (wish or ends):
            return
        if not any(
            isinstance(other, ModelCheckpoint)
            and (other._last_checkpoint_saved, other._last_global_step_saved) == (self.path, trainer.global_step)
            for other in trainer.checkpoint_callbacks
        ):
            trainer.save_checkpoint(self.path)
        if wish:
            self._end(trainer, wish)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End here if a signal came after the last epoch's end, before anything else is started."""
        self._decided.take()
        if wish := int(_largest(self._received, trainer)):
            self._end(trainer, wish)

    def on_test_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """End here if any process got a signal; there is nothing to save, and a test is begun again."""
        if wish := self._agreed(self._received, trainer):
            self._end(trainer, wish)

    def _agreed(self, wish: int, trainer: L.Trainer) -> int:
        """The largest wish of all processes, of several that of the batch before."""
        return wish if trainer.world_size == 1 else int(self._decided.exchange(_largest(wish, trainer)) or 0)

    def _end(self, trainer: L.Trainer, wish: int) -> None:
        number = self.SIGNALS[wish - SAVE - 1]
        try:
            if trainer.is_global_zero:
                saved = "could not be saved" if self.path in trainer.strategy.checkpoint_io.failures else "is saved"
                print(f"{number.name}: step {trainer.global_step} {saved}; go on with resume=last", flush=True)
                queue_again(number, self._handlers.get(number))
        finally:
            # SLURM may end a job's other processes when one ends badly, and the first is not to be ended before this.
            trainer.strategy.barrier()
        raise Interrupted(128 + number)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the signals back; but a process that ends by one is left to end in its time."""
        if not isinstance(exception, Interrupted):
            self._restore()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


def _largest(wish: int, trainer: L.Trainer) -> Tensor:
    """Of all processes; on the device."""
    shared = torch.full((), wish, dtype=torch.int32, device=trainer.strategy.root_device)
    if trainer.world_size > 1:
        torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return shared
