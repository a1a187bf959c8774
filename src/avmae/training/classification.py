"""Fine-tuning as a Lightning task."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from avmae.data.datamodule import Batch
from avmae.data.degrade import next_audible
from avmae.errors import InputError
from avmae.evaluation.scores import FIGURES, ClipScores, scores_of
from avmae.models.classifier import Classifier
from avmae.training.mixing import MixSpec, mix
from avmae.training.optim import OptimSpec
from avmae.training.task import Stream, Task


class Classification(Task):
    """Trains a `Classifier`, of clips with one class each or with many labels, and scores it by clip.

    Args:
        network, optim, config, seed, compile: see `Task`.
        label_smoothing: of the training loss (VideoMAE: 0.1).
        mixing: mixup and cutmix.
        drop_audio: share of the training clips with audio that lose it, so that missing audio does not become a label.
        swap_audio: share of them that get the audio of another class instead, so that video overrules audio that does
            not belong to it.

    Raises:
        InputError: audio is to be dropped or swapped that the network does not read or cannot do without.
    """

    network: Classifier

    def __init__(
        self,
        network: Classifier,
        optim: OptimSpec,
        config: Mapping[str, Any],
        seed: int = 0,
        compile: bool | str = False,
        *,
        label_smoothing: float = 0.0,
        mixing: MixSpec | None = None,
        drop_audio: float = 0.0,
        swap_audio: float = 0.0,
    ) -> None:
        super().__init__(network, optim, config, seed, compile)
        if drop_audio < 0 or swap_audio < 0 or drop_audio + swap_audio >= 1:
            shares = f"task.drop_audio={drop_audio} and task.swap_audio={swap_audio}"
            raise InputError(f"{shares} are shares of clips and add up to less than 1")
        modalities = self.network.encoder.modalities
        if drop_audio + swap_audio and ("audio" not in modalities or modalities["audio"].absent is None):
            raise InputError("task.drop_audio and task.swap_audio need audio: model=avmae or model=avmae_concat")
        self.drop_audio, self.swap_audio = drop_audio, swap_audio
        self.watched = ("val/mAP" if self.network.many_labels else "val/top1", "max")
        self.label_smoothing, self.mixing = label_smoothing, mixing or MixSpec()
        self.results: dict[str, Any] = {}
        """What the last test found, as `ClipScores.compute`."""

    def setup(self, stage: str) -> None:
        splits = self.trainer.datamodule.splits
        if len(splits.classes) != self.network.classes:
            raise InputError(
                f"the data set has {len(splits.classes)} classes, the classifier {self.network.classes}; "
                "fine-tune on this data set first, or evaluate on the one it was trained on"
            )
        self.val_scores = scores_of(self.network, len(splits.val))
        self.test_scores = scores_of(self.network, len(splits.test))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch, mixed where the recipe says so."""
        step = self.trainer.fit_loop.epoch_loop.total_batch_idx
        if self.drop_audio + self.swap_audio:
            generator = torch.Generator(self.device).manual_seed(self.step_seed(Stream.OTHER_AUDIO, step))
            batch = self.change_audio(batch, self.draw(batch["label"].shape[0], generator))
        rng = np.random.default_rng(self.step_seed(Stream.MIXING, step, self.global_rank))
        batch, target = mix(batch, self.network.classes, self.mixing, rng, self.network.clip.mel_std)
        logits = self.network(batch)
        loss = self.loss(logits.float(), target)
        self.report.average("train/loss", loss, 1)
        return loss

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy, of logits (B, classes) float32 and a distribution over classes, or with many labels shares.

        With many labels it is binary, the mean over classes, and smoothing is timm's: towards 1 / classes, as without.
        """
        if self.network.many_labels:
            smooth = target * (1 - self.label_smoothing) + self.label_smoothing / self.network.classes
            return F.binary_cross_entropy_with_logits(logits, smooth)
        self.report.average("train/top1", (logits.argmax(-1) == target.argmax(-1)).float().sum(), len(logits))
        return F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)

    def change_audio(self, batch: Batch, drawn: Tensor) -> Batch:
        """Drop or exchange the audio of clips whose number, (B,) drawn from [0, 1), is low."""
        other, found = next_audible(batch["has_audio"], batch["label"])
        dropped = drawn < self.drop_audio
        swapped = ~dropped & (drawn < self.drop_audio + self.swap_audio)
        audio = torch.where(swapped[:, None, None, None], batch["audio"][other], batch["audio"])
        return {**batch, "audio": audio, "has_audio": batch["has_audio"] & ~dropped & (found | ~swapped)}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.val_scores.update(self.network(batch), batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.test_scores.update(self.network(batch), batch)

    def on_validation_epoch_end(self) -> None:
        """Log scores by clip."""
        self._log_scores("val", self.val_scores)

    def on_test_epoch_end(self) -> None:
        """Log scores by clip and keep the details."""
        self.results = self._log_scores("test", self.test_scores)

    def _log_scores(self, part: str, scores: ClipScores) -> dict[str, Any]:
        result = scores.compute()
        scores.reset()
        # Where audio is not read, nobody knows which clips have it.
        names = [key for key in result if key.rpartition("/")[2] in FIGURES]
        names = [key for key in names if self.trainer.datamodule.audio or "/" not in key]
        # Already summed over processes by the metric.
        self.log_dict({f"{part}/{key}": result[key] for key in names}, rank_zero_only=False)
        return result
