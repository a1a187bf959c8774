"""Fine-tuning as a Lightning task, and scores by clip."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from avmae.data.datamodule import Batch
from avmae.data.degrade import next_sounding
from avmae.errors import InputError
from avmae.models.classifier import Classifier
from avmae.training.mixing import MixSpec, mix
from avmae.training.optim import OptimSpec
from avmae.training.task import Stream, Task


class ClipScores(Metric):
    """Adds up the class probabilities of each clip's views; summed over processes, each view counts once.

    Args:
        clips: how many there are.
        classes: how many there are.
    """

    full_state_update = False
    scores: Tensor
    views: Tensor
    labels: Tensor
    sounding: Tensor

    def __init__(self, clips: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.add_state("scores", torch.zeros(clips, classes), dist_reduce_fx="sum")
        self.add_state("views", torch.zeros(clips, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("labels", torch.full((clips,), -1), dist_reduce_fx="max")
        self.add_state("sounding", torch.zeros(clips, dtype=torch.long), dist_reduce_fx="max")

    def update(self, logits: Tensor, batch: Batch) -> None:
        """Take (B, classes) logits; views with ``clip_id`` -1 are left out."""
        scored = batch["clip_id"] >= 0
        clip_id = batch["clip_id"].clamp(min=0)
        self.scores.index_add_(0, clip_id, logits.float().softmax(-1) * scored[:, None])
        self.views.index_add_(0, clip_id, scored.long())
        # A clip sounds if any of its windows does; unscored views must not overwrite clip 0.
        self.labels.scatter_reduce_(0, clip_id, torch.where(scored, batch["label"], -1), "amax")
        self.sounding.scatter_reduce_(0, clip_id, (scored & batch["has_audio"]).long(), "amax")

    def compute(self) -> dict[str, Any]:
        """Accuracies as shares of 1, for all clips and for the sounding and silent ones, and what they are made of.

        Returns:
            `top1`, `top5` (0-d float tensors; of each non-empty subset with the prefix `sound/` or `silent/`), `clips`
            and `unscored` (counts), and as NumPy arrays `predictions` (clips,) int64 with -1 for clips without a score,
            and `sounding` (clips,) bool.
        """
        seen = self.views > 0
        scores = self.scores / self.views.clamp(min=1)[:, None]
        # Not torchmetrics' functions, which do not take one class.
        best = scores.topk(min(5, self.classes)).indices
        hits = best == self.labels[:, None]
        result: dict[str, Any] = {"clips": int(seen.sum()), "unscored": int((~seen).sum())}
        subsets = {"": seen, "sound/": seen & (self.sounding > 0), "silent/": seen & (self.sounding == 0)}
        for prefix, rows in subsets.items():
            if rows.any():
                for k in (1, 5):
                    result[f"{prefix}top{k}"] = hits[rows, :k].any(1).float().mean()
        # Arrays, for of tensors torchmetrics would take the axis away where there is one clip.
        result["predictions"] = torch.where(seen, best[:, 0], -1).cpu().numpy()
        result["sounding"] = (self.sounding > 0).cpu().numpy()
        return result


def confusion(predictions: NDArray[np.int64], labels: Sequence[int], classes: int) -> Tensor:
    """Count clips by true class and predicted class: (classes, classes) int64, on the CPU.

    Args:
        predictions: (clips,) int64; -1 for clips without a score, which are left out.
        labels: of the clips.
        classes: how many there are.
    """
    predicted, true = torch.from_numpy(predictions), torch.tensor(labels, dtype=torch.int64)
    kept = predicted >= 0
    return (true * classes + predicted)[kept].bincount(minlength=classes**2).view(classes, classes)


def per_class(counts: Tensor, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`top1` as a share of 1 and `clips` of each class that has any, from `confusion`."""
    return {
        name: {"top1": float(row[label] / row.sum()), "clips": int(row.sum())}
        for label, (name, row) in enumerate(zip(names, counts, strict=True))
        if row.any()
    }


class Classification(Task):
    """Trains a `Classifier` and scores it by clip.

    Args:
        network: the classifier.
        optim: the recipe's optimiser.
        config: see `Task`.
        seed: of the run.
        compile: see `Task`.
        label_smoothing: of the training loss (VideoMAE: 0.1).
        mixing: mixup and cutmix.
        drop_audio: share of the training clips with sound whose sound is taken away, so that missing sound is no label.
        swap_audio: share of them that hear a clip of another class instead, so that pictures overrule sound that does
            not belong to them.

    Raises:
        InputError: sound is to be dropped or swapped that the network does not hear or cannot miss.
    """

    network: Classifier

    def __init__(
        self,
        network: Classifier,
        optim: OptimSpec,
        config: Mapping[str, Any],
        seed: int = 0,
        compile: bool | str = False,
        label_smoothing: float = 0.0,
        mixing: MixSpec | None = None,
        drop_audio: float = 0.0,
        swap_audio: float = 0.0,
    ) -> None:
        super().__init__(network, optim, config, seed, compile)
        if drop_audio < 0 or swap_audio < 0 or drop_audio + swap_audio >= 1:
            raise InputError(
                f"task.drop_audio={drop_audio} and task.swap_audio={swap_audio} are shares of clips and add up to less "
                "than 1"
            )
        self.drop_audio, self.swap_audio = drop_audio, swap_audio
        modalities = network.encoder.modalities
        if drop_audio + swap_audio and ("audio" not in modalities or modalities["audio"].absent is None):
            raise InputError(
                "task.drop_audio and task.swap_audio need a system that hears: model=avmae or model=avmae_concat"
            )
        self.label_smoothing, self.mixing = label_smoothing, mixing or MixSpec()
        self.results: dict[str, Any] = {}
        """What the last test found, as `ClipScores.compute`."""

    def setup(self, stage: str) -> None:
        """Tables of scores for the clips at hand."""
        splits = self.trainer.datamodule.splits
        if len(splits.classes) != self.network.classes:
            raise InputError(
                f"the data set has {len(splits.classes)} classes, the classifier {self.network.classes}; "
                "fine-tune on this data set first, or evaluate on the one it was trained on"
            )
        self.val_scores = ClipScores(len(splits.val), self.network.classes)
        self.test_scores = ClipScores(len(splits.test), self.network.classes)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy of one batch, mixed where the recipe says so."""
        step = self.trainer.fit_loop.epoch_loop.total_batch_idx
        if self.drop_audio + self.swap_audio:
            generator = torch.Generator(self.device).manual_seed(self.step_seed(Stream.OTHER_SOUND, step))
            batch = self.change_sound(batch, self.draw(batch["label"].shape[0], generator))
        rng = np.random.default_rng(self.step_seed(Stream.MIXING, step, self.global_rank))
        batch, target = mix(batch, self.network.classes, self.mixing, rng, self.network.clip.mel_std)
        logits = self.network(batch)
        loss = F.cross_entropy(logits.float(), target, label_smoothing=self.label_smoothing)
        self.report.average("train/loss", loss, 1)
        self.report.average("train/top1", (logits.argmax(-1) == target.argmax(-1)).float().sum(), len(logits))
        return loss

    def change_sound(self, batch: Batch, drawn: Tensor) -> Batch:
        """Take away or exchange the sound of clips whose number, (B,) drawn from [0, 1), is low."""
        other, found = next_sounding(batch["has_audio"], batch["label"])
        dropped = drawn < self.drop_audio
        swapped = ~dropped & (drawn < self.drop_audio + self.swap_audio)
        audio = torch.where(swapped[:, None, None, None], batch["audio"][other], batch["audio"])
        return {**batch, "audio": audio, "has_audio": batch["has_audio"] & ~dropped & (found | ~swapped)}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.val_scores.update(self.network(batch), batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.test_scores.update(self.network(batch), batch)

    def on_validation_epoch_end(self) -> None:
        """Log accuracies by clip."""
        self._log_scores("val", self.val_scores)

    def on_test_epoch_end(self) -> None:
        """Log accuracies by clip and keep the details."""
        self.results = self._log_scores("test", self.test_scores)

    def _log_scores(self, part: str, scores: ClipScores) -> dict[str, Any]:
        result = scores.compute()
        scores.reset()
        # Where the sound is not read, nobody knows which clips have it.
        names = [key for key in result if "top" in key and (self.trainer.datamodule.audio or "/" not in key)]
        # Already summed over processes by the metric.
        self.log_dict({f"{part}/{key}": result[key] for key in names}, rank_zero_only=False)
        return result
