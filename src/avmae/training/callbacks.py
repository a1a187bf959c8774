"""What is watched while training: speed, unreadable clips, progress."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
import rich.progress
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, ProgressBar
from torch import Tensor
from torchmetrics import MeanMetric

from avmae.data.datamodule import Batch
from avmae.errors import InputError, printable


class Throughput(Callback):
    """Logs `train/clips_per_second` over all processes and `train/data_wait`, the share of time spent waiting for data.

    Both cover the steps since the last log, so nothing has to wait for the device.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = self._ended = time.perf_counter()
        self._waited, self._clips = 0.0, 0

    # What comes between epochs, as checkpoints, is no waiting for data.
    on_train_epoch_start = on_train_start

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Time since the last batch went into reading this one."""
        self._waited += time.perf_counter() - self._ended

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Log on the steps on which the trainer logs."""
        self._ended = time.perf_counter()
        self._clips += batch["label"].shape[0] * trainer.world_size
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if (stepped and trainer.global_step % trainer.log_every_n_steps == 0) or trainer.is_last_batch:
            elapsed = self._ended - self._since
            pl_module.log_dict(
                {"train/clips_per_second": self._clips / elapsed, "train/data_wait": self._waited / elapsed}
            )
            self._since, self._waited, self._clips = self._ended, 0.0, 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validation is no part of the training speed."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._since = self._ended = time.perf_counter()
            self._waited, self._clips = 0.0, 0


class UnreadableClips(Callback):
    """Names clips that could not be read at the end of each epoch, and stops a run in which too many are.

    All processes count together and stop together.

    Args:
        max_share: of all windows read in an epoch, a validation or a test that may fail.
    """

    def __init__(self, max_share: float = 0.05) -> None:
        self.max_share = max_share
        self._failed: dict[str, list[str]] = {"training": [], "validation": [], "test": []}
        self._read = dict.fromkeys(self._failed, 0)

    def _count(self, trainer: L.Trainer, part: str, batch: Batch, batches: int) -> None:
        self._failed[part] += batch["unreadable"]
        self._read[part] += batch["windows"]
        # After the same batches on all processes, which have equally many, and ever more rarely.
        if batches & (batches - 1) == 0:
            self._judge(trainer, part, ended=False)

    def _judge(self, trainer: L.Trainer, part: str, ended: bool = True) -> None:
        """Decide by what all processes together could not read, so that all go on or none does."""
        own = self._failed[part], self._read[part]
        every = [own] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(every, own)
        failed, read = [message for messages, _ in every for message in messages], sum(windows for _, windows in every)
        # Enough to tell a bad data set from a bad clip, long before a large epoch ends.
        if not ended and (read < 200 or len(failed) <= 2 * self.max_share * read):
            return
        self._failed[part], self._read[part] = [], 0
        if not failed:
            return
        clips = sorted(set(failed))
        text = f"{part}: {len(failed)} of {read} windows cannot be read ({len(clips)} clips), for example:\n  "
        text += "\n  ".join(clips[:5])
        if len(failed) > self.max_share * read:
            raise InputError(
                f"{text}\nmore than callbacks.unreadable.max_share={self.max_share:g} of the data cannot be read; "
                "repair it, take the clips off the lists, or raise the share"
            )
        if trainer.is_global_zero:
            print(f"skipped: {printable(text)}", file=sys.stderr)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._count(trainer, "training", batch, batch_idx + 1)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int, *_: int
    ) -> None:
        self._count(trainer, "validation", batch, batch_idx + 1)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int, *_: int
    ) -> None:
        self._count(trainer, "test", batch, batch_idx + 1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what was skipped."""
        self._judge(trainer, "training")

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what was not scored."""
        self._judge(trainer, "validation")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what was not scored."""
        self._judge(trainer, "test")


class OnlineKNN(Callback):
    """Scores pretraining by what its features know of the classes: `val/knn_top1`, without training a thing.

    Features of the last training clips are kept as they were when seen; a validation clip gets the class that its
    nearest neighbours vote for, weighted by exp(cosine similarity / temperature) as in DINO (Caron et al. 2021). Both
    are features under the task's masks. It is a curve to watch; `python -m avmae.features` measures without masks.

    Args:
        bank: training clips kept on each process.
        neighbours: that vote.
        temperature: of their weights.
    """

    def __init__(self, bank: int = 4096, neighbours: int = 20, temperature: float = 0.07) -> None:
        self.bank, self.neighbours, self.temperature = bank, neighbours, temperature
        self._state: dict[str, Tensor] = {}
        self._seen = 0
        self._top1 = MeanMetric()

    def state_dict(self) -> dict[str, Any]:
        """The bank, so that a resumed run's curve goes on."""
        return {"seen": self._seen, **self._state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the bank."""
        self._seen = state_dict["seen"]
        self._state = {name: value for name, value in state_dict.items() if name != "seen"}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Replace the oldest clips."""
        if "features" not in outputs:
            return
        features = F.normalize(outputs["features"].float(), dim=1)
        if not self._state:
            self._state = {"features": features.new_zeros(self.bank, features.shape[1])}
            self._state["labels"] = batch["label"].new_full((self.bank,), -1)
        self._state = {name: value.to(features.device) for name, value in self._state.items()}
        place = (self._seen + torch.arange(len(features), device=features.device)) % self.bank
        # A step that is skipped because it is not finite has no say either.
        finite = features.isfinite().all(1)
        self._state["features"][place] = features.nan_to_num()
        self._state["labels"][place] = batch["label"].where(finite, -1)
        self._seen += len(features)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int, *_: int
    ) -> None:
        """Let neighbours vote."""
        if not self._state or not isinstance(outputs, dict) or "features" not in outputs:
            return
        classes = len(trainer.datamodule.classes)
        if classes < 2:
            return
        votes = knn_votes(outputs["features"], **self._state, classes=classes, k=self.neighbours, t=self.temperature)
        hit = (votes.argmax(1) == batch["label"]).float()
        self._top1.to(hit.device).update(hit, (batch["clip_id"] >= 0).float())

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log and start anew."""
        if self._top1.update_called:
            pl_module.log("val/knn_top1", self._top1.compute())
            self._top1.reset()


def knn_votes(queries: Tensor, features: Tensor, labels: Tensor, classes: int, k: int = 20, t: float = 0.07) -> Tensor:
    """Classes by votes of the nearest neighbours, weighted by exp(cosine similarity / t).

    Args:
        queries: (Q, D).
        features: (N, D), of unit length.
        labels: (N,) int64; -1 has no vote.
        classes: how many there are.
        k: neighbours that vote.
        t: temperature.

    Returns:
        (Q, classes) float32.
    """
    votes = features.new_zeros(len(queries), classes)
    # In pieces, for all similarities of a large data set do not fit in memory.
    for part, vote in zip(queries.split(1024), votes.split(1024), strict=True):
        similarity = (F.normalize(part.float(), dim=1) @ features.T).masked_fill_(labels < 0, float("-inf"))
        nearest = similarity.topk(min(k, len(labels)))
        vote.scatter_add_(1, labels[nearest.indices].clamp(min=0), (nearest.values / t).exp())
    return votes


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
