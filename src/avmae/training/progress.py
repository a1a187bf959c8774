"""A bar over the run, or lines in a log file."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
import rich.progress
from lightning.pytorch.callbacks import ProgressBar

from avmae.data.datamodule import Batch


class Progress(ProgressBar):
    """A bar over the whole run on a terminal; elsewhere a line now and then, so that log files stay readable.

    Args:
        seconds: between two lines.
    """

    def __init__(self, seconds: float = 15.0) -> None:
        super().__init__()
        self.terminal = sys.stdout.isatty()
        # A bar's figures need not move faster, and reading them waits for the device.
        self.seconds = 0.5 if self.terminal else seconds
        self.is_enabled = True
        self._meters: list[Meter] = []
        self._live: rich.progress.Progress | None = None

    def enable(self) -> None:
        """Lightning's switch."""
        self.is_enabled = True

    def disable(self) -> None:
        """Lightning turns off all but the first process."""
        self.is_enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """What tasks print; above the bar, if there is one."""
        if self.is_enabled:
            print(*args, **kwargs, flush=True)

    def _open(self, total: float, done: int = 0) -> None:
        task = None
        if self.terminal and self.is_enabled:
            if self._live is None:
                columns = (
                    rich.progress.BarColumn(20),
                    rich.progress.TaskProgressColumn(),
                    rich.progress.TextColumn("{task.description}"),
                )
                self._live = rich.progress.Progress(*columns, transient=True, refresh_per_second=2)
                self._live.start()
            task = self._live.add_task("", total=total, completed=done)
        self._meters.append(Meter(total, done, task))

    def _move(self, done: int, name: str, figures: str = "", end: bool = False) -> None:
        meter, now = self._meters[-1], time.monotonic()
        if not self.is_enabled or not (end or now - meter.shown >= self.seconds):
            return
        meter.shown = now
        left = (now - meter.began) / max(1, done - meter.first) * (meter.total - done)
        text = f"{name}  left {duration(left)}  {figures}".rstrip()
        if self._live is not None:
            self._live.update(meter.task, completed=done, description=text)
        else:
            print(text, flush=True)

    def _close(self) -> None:
        meter = self._meters.pop()
        if self._live is not None:
            self._live.remove_task(meter.task)
            if not self._meters:
                self._live.stop()
                self._live = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._open(trainer.estimated_stepping_batches, trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Show the few figures one wants to see move."""
        steps, total = trainer.global_step, int(self._meters[-1].total)
        epochs = f"/{trainer.max_epochs}" if (trainer.max_epochs or 0) > 0 else ""
        name = f"epoch {trainer.current_epoch + 1}{epochs}  step {steps}/{total}"
        self._move(steps, name, figures(trainer.logged_metrics), end=steps >= total)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._open(sum(trainer.num_val_batches))

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int, *_: int
    ) -> None:
        self._move(batch_idx + 1, f"validation  {batch_idx + 1}/{self._meters[-1].total:.0f}")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._open(sum(trainer.num_test_batches))

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int, *_: int
    ) -> None:
        self._move(batch_idx + 1, f"test  {batch_idx + 1}/{self._meters[-1].total:.0f}")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the bar away."""
        self._close()

    on_train_end = on_validation_end = on_test_end

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        while self._meters:
            self._close()


class Meter:
    """How far something is.

    Args:
        total: steps of it.
        first: steps done before the clock started.
        task: its bar.
    """

    def __init__(self, total: float, first: int, task: Any) -> None:
        self.total, self.first, self.task = total, first, task
        self.began = self.shown = time.monotonic()


def duration(seconds: float) -> str:
    """Seconds for people: 42 s, 12:05 or 3:02:11."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def figures(metrics: Mapping[str, Any]) -> str:
    """The logged metrics that are worth a place on the bar."""
    formats = {
        "train/loss": "loss {:.4g}",
        "train/clips_per_second": "{:.3g} clips/s",
        "train/data_wait": "data wait {:.0%}",
        "val/loss": "val/loss {:.4g}",
        "val/top1": "val/top1 {:.1%}",
    }
    return "  ".join(form.format(float(metrics[name])) for name, form in formats.items() if name in metrics)
