"""Masked reconstruction as a Lightning task."""

from typing import cast

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from avmae.data.datamodule import Batch
from avmae.models.autoencoder import MaskedAutoencoder, Reconstruction
from avmae.training.task import Stream, Task


class Pretraining(Task):
    """Trains a `MaskedAutoencoder`.

    Logs the loss and its parts by modality; the sound's is the mean over clips that have sound.
    """

    network: MaskedAutoencoder

    def setup(self, stage: str) -> None:
        """Metrics over the validation clips."""
        self.val_loss = MeanMetric()
        self.val_losses = torch.nn.ModuleDict({name: MeanMetric() for name in self.network.decoders})

    def reconstruct(self, batch: Batch, seed: int) -> Reconstruction:
        """Draw masks from a seed and reconstruct. The masks do not depend on how many processes share the batch."""
        generator = torch.Generator(self.device).manual_seed(seed)
        world, rank = self.trainer.world_size, self.global_rank
        masks = self.network.draw_masks(batch["label"].shape[0], generator, rank, world)
        return self.network(batch, masks)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        result = self.reconstruct(batch, self.step_seed(Stream.MASKS, self.trainer.fit_loop.epoch_loop.total_batch_idx))
        sounding = batch["has_audio"].sum().clamp(min=1)
        self.log("train/loss", result.loss.detach(), sync_dist=True)
        for name, losses in result.losses.items():
            mean = losses.detach().sum() / (sounding if name == "audio" else losses.numel())
            self.log(f"train/loss_{name}", mean, sync_dist=True)
        return result.loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss on validation clips, each once, under masks that are the same every time."""
        result = self.reconstruct(batch, self.step_seed(Stream.VALIDATION_MASKS, batch_idx))
        scored = (batch["clip_id"] >= 0).float()
        total = torch.zeros_like(scored)
        for name, losses in result.losses.items():
            by_clip = losses.reshape(scored.shape[0], -1).mean(1)
            total = total + self.network.loss_weights[name] * by_clip
            weight = scored * batch["has_audio"] if name == "audio" else scored
            cast(MeanMetric, self.val_losses[name]).update(by_clip, weight)
            self.log(f"val/loss_{name}", cast(MeanMetric, self.val_losses[name]))
        self.val_loss.update(total, scored)
        self.log("val/loss", self.val_loss)
