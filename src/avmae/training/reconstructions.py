"""Reconstructions of the same clips during pretraining."""

import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import wandb
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from PIL import Image

from avmae.data.decode.window import Window, read_window
from avmae.errors import InputError, MediaError
from avmae.models.autoencoder import MaskedAutoencoder
from avmae.training.loggers import log_image
from avmae.viewing.reconstruction import Comparison, compare

TIMES = 20


class Reconstructions(Callback):
    """Reconstructs the same clips under the same masks again and again, to show how a model learns.

    The clips are spread evenly over the validation list and reconstructed after validations; where there are no
    validation clips, training clips after epochs. Each time, a video with audio, a contact sheet and the audio go to
    `reconstructions/` in the run's folder and from there to W&B and TensorBoard (which plays no videos). Training is
    not touched: a run with and without this gives the same weights. If they cannot be written, one warning says so.

    Args:
        clips: how many; 0 for none.
        every: validations (or epochs) between two times, the first and the last one apart; None for about 20 times in a
            run.
        seed: of the masks; the command `reconstruct` draws the same ones from it.

    Raises:
        InputError: a count is negative, or `every` below 1.
    """

    def __init__(self, clips: int = 3, every: int | None = None, seed: int = 0) -> None:
        if clips < 0 or (every is not None and every < 1):
            raise InputError("callbacks.reconstructions: clips is at least 0, every at least 1")
        self.clips, self.every, self.seed = clips, every, seed
        self._times = 0
        self._windows: dict[str, Window] | None = None
        self._warned = False

    def state_dict(self) -> dict[str, Any]:
        """How many validations there were, so that a resumed run keeps the rhythm."""
        return {"times": self._times}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._times = state_dict["times"]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._reconstruct(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.datamodule.splits.val:
            self._reconstruct(trainer, pl_module)

    def _reconstruct(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        network = pl_module.network
        if not self.clips or not isinstance(network, MaskedAutoencoder):
            return
        self._times += 1
        # Sharded weights are gathered by all processes together; else one alone has to work.
        sharded = isinstance(trainer.strategy, ModelParallelStrategy)
        if not self._due(trainer) or not (trainer.is_global_zero or sharded):
            return
        self._windows = self._read(trainer) if self._windows is None else self._windows
        training, name = pl_module.training, pl_module.config["model"]["name"]
        pl_module.eval()
        # Not compiled: one clip is another shape than a batch.
        with torch.compiler.set_stance("force_eager"):
            found = {clip: compare({name: network}, window, self.seed) for clip, window in self._windows.items()}
        pl_module.train(training)
        if not trainer.is_global_zero:
            return
        try:
            for number, (clip, comparison) in enumerate(found.items(), start=1):
                self._show(trainer, f"reconstructions/{number}", clip, comparison)
        except Exception as error:
            # A full disk or a missing codec is no reason to lose days of training.
            if not self._warned:
                said = f"reconstructions cannot be shown ({type(error).__name__}: {error}); training continues"
                print(f"warning: {said}", file=sys.stderr, flush=True)
            self._warned = True

    def _due(self, trainer: L.Trainer) -> bool:
        between = (trainer.check_val_every_n_epoch or 1) if trainer.datamodule.splits.val else 1
        total = max(1, (trainer.max_epochs or 1) // between)
        every = self.every or max(1, total // TIMES)
        return self._times in (1, total) or self._times % every == 0

    def _read(self, trainer: L.Trainer) -> dict[str, Window]:
        data, clip = trainer.datamodule, trainer.datamodule.clip
        entries = data.splits.val or data.splits.train
        windows: dict[str, Window] = {}
        for place in sorted(set(np.linspace(0, len(entries) - 1, self.clips).round().astype(int).tolist())):
            entry = entries[place]
            path = Path(str(entry.path))
            name = path.stem + str(entry).removeprefix(str(path)).replace("#t=", "_")
            # Clips that cannot be read are named by the callback for them.
            try:
                window = read_window(
                    entry.path, clip, 0.5, clip.canvas, data.audio and (entry.audio or True), entry.between
                )
            except MediaError:
                continue
            windows[name if name not in windows else f"{path.parent.name}_{name}"] = window
        return windows

    def _show(self, trainer: L.Trainer, tag: str, name: str, comparison: Comparison) -> None:
        # The step is that on which Lightning logs the validation.
        epoch, step = trainer.current_epoch, max(0, trainer.global_step - 1)
        folder = Path(trainer.default_root_dir, "reconstructions", f"epoch_{epoch:04d}", name)
        folder.mkdir(parents=True, exist_ok=True)
        files = comparison.write(folder, f"{name}  (epoch {epoch})")
        log_image(trainer.loggers, f"{tag}_picture", Image.open(folder / "reconstruction.png"), step, name)
        video = str(folder / "reconstruction.mp4")
        # A key for each: W&B shows lists of audio only with a further package.
        audio = {f"{tag}_sound_{files[label].stem}": label for label in comparison.audible}
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                media: dict[str, Any] = {f"{tag}_video": wandb.Video(video, caption=name, format="mp4")}
                media |= {k: wandb.Audio(str(files[v]), caption=f"{name}, {v}") for k, v in audio.items()}
                logger.log_metrics(media, step)
            elif isinstance(logger, TensorBoardLogger):
                for key, label in audio.items():
                    waveform = comparison.audible[label]
                    logger.experiment.add_audio(key, waveform, step, comparison.clip.sample_rate)
