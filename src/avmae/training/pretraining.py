"""Masked reconstruction as a Lightning task."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from avmae.data.datamodule import Batch
from avmae.errors import InputError
from avmae.models.autoencoder import MaskedAutoencoder, Reconstruction
from avmae.models.contrast import info_nce
from avmae.training.optim import OptimSpec
from avmae.training.task import Stream, Task


@dataclass(frozen=True)
class ObjectiveSpec:
    """What pretraining asks for besides reconstruction under masks; all off by default.

    Args:
        contrast: weight of the InfoNCE loss between pooled video and audio (CAV-MAE: 0.01).
        temperature: of that loss (CAV-MAE: 0.05).
        hide_audio: share of clips whose audio is masked whole and has to be predicted from the video (inpainting).
        hide_video: share of clips whose video is masked whole; only clips that have audio.

    Raises:
        InputError: a value is out of range.
    """

    contrast: float = 0.0
    temperature: float = 0.05
    hide_audio: float = 0.0
    hide_video: float = 0.0

    def __post_init__(self) -> None:
        if self.contrast < 0 or self.temperature <= 0:
            raise InputError("task.contrast must not be negative, task.temperature must be positive")
        if self.hide_audio < 0 or self.hide_video < 0 or self.hide_audio + self.hide_video > 1:
            raise InputError("task.hide_audio and task.hide_video are shares of clips and add up to at most 1")


class Pretraining(Task):
    """Trains a `MaskedAutoencoder`.

    Logs the loss and its parts by modality; the audio's is the mean over clips that have audio.

    Args:
        network, optim, config, seed, compile: see `Task`.
        objective: what is asked for besides reconstruction.

    Raises:
        InputError: the objective needs a modality, or a token in its place, that the network does not have.
    """

    network: MaskedAutoencoder
    watched = ("val/loss", "min")

    def __init__(
        self,
        network: MaskedAutoencoder,
        optim: OptimSpec,
        config: Mapping[str, Any],
        seed: int = 0,
        compile: bool | str = False,
        *,
        objective: ObjectiveSpec | None = None,
    ) -> None:
        super().__init__(network, optim, config, seed, compile)
        self.objective = objective or ObjectiveSpec()
        modalities = self.network.encoder.modalities
        if self.objective.contrast and "audio" not in modalities:
            raise InputError("task.contrast compares video with audio; choose model=avmae or model=avmae_concat")
        self.masked_whole = {"audio": self.objective.hide_audio, "video": self.objective.hide_video}
        for name, share in self.masked_whole.items():
            if share and (name not in modalities or modalities[name].absent is None):
                raise InputError(
                    f"task.hide_{name} needs a system with audio that has a token for absent {name}; "
                    "choose model=avmae or model=avmae_concat with model.may_lack=[video,audio]"
                )

    def setup(self, stage: str) -> None:
        self.val_loss = MeanMetric()
        self.val_losses = torch.nn.ModuleDict({name: MeanMetric() for name in self.network.decoders})

    def reconstruct(
        self, batch: Batch, seed: int, part: int = 0, parts: int = 1, whole: bool = False
    ) -> Reconstruction:
        """Draw masks from a seed and reconstruct this process's batch, the `part`-th of a step's `parts`.

        What is masked does not depend on how many processes share a step's clips, or into how many batches they are
        cut. Modalities are masked whole only if `whole`, and where the objective says so.
        """
        generator = torch.Generator(self.device).manual_seed(seed)
        world, clips = self.trainer.world_size * parts, batch["label"].shape[0]
        rank = self.trainer.world_size * part + self.global_rank
        masks = self.network.draw_masks(clips, generator, rank, world)
        if not (whole and any(self.masked_whole.values())):
            return self.network(batch, masks)
        drawn = self.draw(clips, generator, part, parts)
        # Never both, and nothing of a clip that would be left with nothing.
        shown = {
            "audio": drawn >= self.objective.hide_audio,
            "video": (drawn < 1 - self.objective.hide_video) | ~batch["has_audio"],
        }
        return self.network(batch, masks, shown)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Loss of one batch, and its clips' features (B, modalities x dim)."""
        accumulated = self.trainer.accumulate_grad_batches
        seed = self.step_seed(Stream.MASKS, self.trainer.global_step)
        result = self.reconstruct(batch, seed, batch_idx % accumulated, accumulated, whole=True)
        loss = result.loss
        if self.objective.contrast:
            # Candidates are the clips of all processes; every process computes the whole loss.
            video, audio = (self.gather(result.apart[name]) for name in ("video", "audio"))
            contrast = info_nce(video, audio, self.gather(result.paired), self.objective.temperature)
            loss = loss + self.objective.contrast * contrast
            self.report.average("train/loss_contrast", contrast, 1)
        self.report.average("train/loss", loss, 1)
        for name, losses in result.losses.items():
            # The loss of audio is a sum over the clips that have it.
            clips = batch["has_audio"].sum() if name == "audio" else len(losses)
            self.report.average(f"train/loss_{name}", losses.sum(), clips)
        return {"loss": loss, "features": torch.cat(list(result.fused.values()), 1).detach()}

    def gather(self, values: Tensor) -> Tensor:
        """The rows of all processes, with gradients to each."""
        if self.trainer.world_size == 1:
            return values
        return cast(Tensor, self.all_gather(values, sync_grads=values.requires_grad)).flatten(0, 1)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Loss on validation clips, each once, under masks that are the same every time; features as in training."""
        result = self.reconstruct(batch, self.step_seed(Stream.VALIDATION_MASKS, batch_idx))
        scored = (batch["clip_id"] >= 0).float()
        total = torch.zeros_like(scored)
        for name, losses in result.losses.items():
            by_clip = losses.reshape(scored.shape[0], -1).mean(1)
            total = total + self.network.loss_weights[name] * by_clip
            weight = scored * batch["has_audio"] if name == "audio" else scored
            cast(MeanMetric, self.val_losses[name]).update(by_clip, weight)
        self.val_loss.update(total, scored)
        self.log("val/loss", self.val_loss)
        return {"features": torch.cat(list(result.fused.values()), 1)}

    def on_validation_epoch_end(self) -> None:
        """Log the losses by modality; without a clip that has audio, there is none of audio."""
        for name, metric in self.val_losses.items():
            mean = cast(MeanMetric, metric).compute()
            cast(MeanMetric, metric).reset()
            if not mean.isnan():
                # Of all processes by the metric's doing.
                self.log(f"val/loss_{name}", mean)
