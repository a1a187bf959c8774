"""How far a run is: Lightning's bars on a terminal, lines in a log file."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar

FIGURES = {
    "train/loss": ("loss", ".4g"),
    "train/clips_per_second": ("clips/s", ".3g"),
    "train/data_wait": ("data wait", ".0%"),
    "val/loss": ("val/loss", ".4g"),
    "val/top1": ("val/top1", ".1%"),
    "val/mAP": ("val/mAP", ".1%"),
}
"""The logged metrics that are worth a place, by what they are called there and their format."""


class Progress(RichProgressBar):
    """Lightning's bars, with our figures; where standard output is no terminal, a line now and then instead.

    Args:
        seconds: between two lines.
    """

    def __init__(self, seconds: float = 15.0) -> None:
        self.terminal = sys.stdout.isatty()
        super().__init__(refresh_rate=2 if self.terminal else 0)
        # A bar's figures need not move faster, and reading them waits for the device.
        self.seconds = 0.5 if self.terminal else seconds
        self._read, self._figures = float("-inf"), dict[str, str]()
        self._run = self._part = Meter(0)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """The figures beside the bar, read anew every `seconds`."""
        if time.monotonic() - self._read >= self.seconds:
            self._read = time.monotonic()
            self._figures = {"left": self._run.left(trainer.global_step), **figures(trainer.logged_metrics)}
        return self._figures

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._run = Meter(trainer.estimated_stepping_batches, trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        steps, total = trainer.global_step, int(self._run.total)
        epochs = f"/{trainer.max_epochs}" if (trainer.max_epochs or 0) > 0 else ""
        name = f"epoch {trainer.current_epoch + 1}{epochs}  step {steps}/{total}"
        self._line(trainer, self._run, steps, name, end=steps >= total)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        super().on_validation_batch_end(trainer, pl_module, *args)
        self._part_line(trainer, "validation", args[2] + 1, sum(trainer.num_val_batches))

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        super().on_test_batch_end(trainer, pl_module, *args)
        self._part_line(trainer, "test", args[2] + 1, sum(trainer.num_test_batches))

    def _part_line(self, trainer: L.Trainer, name: str, done: int, total: float) -> None:
        if done == 1:
            self._part = Meter(total, done)
        self._line(trainer, self._part, done, f"{name}  {done}/{total:.0f}")

    def _line(self, trainer: L.Trainer, meter: "Meter", done: int, name: str, end: bool = False) -> None:
        now = time.monotonic()
        if not self.terminal and trainer.is_global_zero and (end or now - meter.shown >= self.seconds):
            meter.shown = now
            shown = figures(trainer.logged_metrics) if meter is self._run else {}
            print(name, f"left {meter.left(done)}", *map(" ".join, shown.items()), sep="  ", flush=True)


class Meter:
    """How far something of `total` steps is, of which the `first` were done before the clock started."""

    def __init__(self, total: float, first: int = 0) -> None:
        self.total, self.first = total, first
        self.began = self.shown = time.monotonic()

    def left(self, done: int) -> str:
        """The time that the rest will take."""
        return duration((time.monotonic() - self.began) / max(1, done - self.first) * (self.total - done))


def duration(seconds: float) -> str:
    """Seconds for people: 42 s, 12:05 or 3:02:11."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def figures(metrics: Mapping[str, Any]) -> dict[str, str]:
    """What there is of `FIGURES`, as text."""
    return {short: format(float(metrics[name]), form) for name, (short, form) in FIGURES.items() if name in metrics}
