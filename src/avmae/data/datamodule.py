"""A data set to batches on the device, for training, validation and test."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from avmae.clip import ClipSpec
from avmae.data.augment import AugmentSpec
from avmae.data.dataset import ClipDataset, Sample, collate
from avmae.data.manifest import without_unreadable
from avmae.data.sampling import EvalSampler, TrainSampler, balancing_weights
from avmae.data.sources.ucf101 import CLASSES_WITH_SOUND
from avmae.data.splits import ClipEntry, Splits, few_labels, keep_classes
from avmae.data.transform import Batch, BatchTransform
from avmae.data.workers import CONTEXT, Readings, explain, prepare_worker
from avmae.errors import InputError


@dataclass(frozen=True)
class Loading:
    """Which clips of a data set are read, and how; `conf/data/base.yaml` has the same defaults.

    Raises:
        InputError: a setting is out of range.
    """

    manifest: str | None = None  # to leave out what cannot be read; None for the one in the data set's folder
    only: list[str] | str | None = None  # classes to keep, or `with_sound`: the 51 of UCF101 that have audio
    train_share: float = 1.0  # of each class's training clips, at least one; the rest is left out (few labels)
    balanced: bool = False  # draw training clips so that all classes come equally often, rare ones again and again
    batch_size: int = 8  # windows per process and step
    workers: int = 2  # reading processes for each training process
    prefetch: int = 2  # batches that each of them reads ahead: more even out slow files and take memory
    timeout: float = 180  # seconds to wait for a batch before the run ends, in case a worker hangs; 0 waits forever
    segments: int = 5  # windows of each clip at test time
    crops: int = 3  # boxes of each test window
    cache: str | None = None  # folder of decoded clips, made at first use: much room, and no decoding from then on

    def __post_init__(self) -> None:
        if not 0 < self.train_share <= 1:
            raise InputError(f"data.train_share={self.train_share} must be above 0 and at most 1")
        if min(self.batch_size, self.segments, self.crops, self.prefetch) < 1 or min(self.workers, self.timeout) < 0:
            raise InputError("data: batch_size, segments, crops, prefetch are at least 1, workers, timeout at least 0")

    def choose(self, splits: Splits) -> Splits:
        """The clips of the chosen classes."""
        if self.only is None:
            return splits
        names = CLASSES_WITH_SOUND if self.only == "with_sound" else self.only
        return keep_classes(splits, [names] if isinstance(names, str) else list(map(str, names)))


class ClipDataModule(L.LightningDataModule):
    """Reads the clips of a data set: what a source returned, such as `read_ucf101`.

    Attributes:
        listed: the clips of each part before unreadable ones and labels beyond `train_share` are left out.
        splits: those that are left.

    Raises:
        InputError: a class does not exist, or the manifest is missing, damaged or of other clips.
    """

    def __init__(
        self,
        clips: Splits,
        clip: ClipSpec,
        loading: Loading | None = None,
        audio: bool = True,
        augment: AugmentSpec | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.loading = loading = loading or Loading()
        self.listed = loading.choose(clips)
        readable = without_unreadable(self.listed, loading.manifest)
        self.splits = readable if loading.train_share == 1 else few_labels(readable, loading.train_share, seed)
        self.clip, self.audio, self.augment, self.seed = clip, audio, augment or AugmentSpec(), seed
        self.transform = BatchTransform(clip, self.augment)
        self._readings: list[Readings] = []
        self._resumed_clips_a_batch: int | None = None

    @property
    def classes(self) -> list[str]:
        """Names by label."""
        return self.splits.classes

    def _dataset(self, entries: list[ClipEntry], augment: AugmentSpec | None, **views: Any) -> ClipDataset:
        cache = Path(self.loading.cache).expanduser() if self.loading.cache else None
        many = len(self.classes) if self.splits.many_labels else None
        return ClipDataset(entries, self.clip, self.audio, augment, cache=cache, many_labels=many, **views)

    def _loader(self, dataset: ClipDataset, sampler: TrainSampler | EvalSampler) -> DataLoader:
        number = self.loading.workers
        if number:
            dataset.readings = Readings(number, dataset.entries)
            self._readings.append(dataset.readings)
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=number,
            worker_init_fn=prepare_worker,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=number > 0,
            prefetch_factor=self.loading.prefetch if number else None,
            timeout=self.loading.timeout if number else 0,
            multiprocessing_context=CONTEXT if number else None,
        )

    def explain(self, error: BaseException) -> str | None:
        """Which reading process died or hangs, and at which clip, if that is what an error of training is about."""
        return explain(str(error), self._readings)

    def train_sampler(self) -> TrainSampler:
        """This process's part of each epoch.

        Raises:
            InputError: there are no training clips, or fewer than one batch.
        """
        if not self.splits.train:
            raise InputError("the data set has no training clips; set data.train")
        weights = balancing_weights([clip.labels for clip in self.splits.train]) if self.loading.balanced else None
        if weights is not None and not weights.any():
            raise InputError("data.balanced=true draws clips by their classes, and no training clip has any")
        return TrainSampler(len(self.splits.train), self.loading.batch_size, self.seed, *self._place(), weights=weights)

    def _place(self) -> tuple[int, int]:
        """This process's number, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> DataLoader:
        """Batches of random windows, from where a resumed run stopped."""
        assert self.trainer is not None
        sampler, fit = self.train_sampler(), self.trainer.fit_loop
        if fit.restarting:
            finished, sampler.start = divmod(self._batches_done(len(sampler)), len(sampler))
            sampler.epoch = self.trainer.current_epoch + finished
        else:
            # A checkpoint of an epoch's end still counts that epoch's batches.
            sampler.epoch = fit.epoch_progress.current.processed
        return self._loader(self._dataset(self.splits.train, self.augment), sampler)

    def _batches_done(self, batches: int) -> int:
        """How many of an epoch's batches are done where a run is resumed.

        After another number of processes or another batch size, Lightning's count, by which it ends the epoch, is put
        into today's batches, down to the start of a step: clips may be read again, but none is left out.
        """
        assert self.trainer is not None
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
        now, before = self._clips_a_batch(), self._resumed_clips_a_batch
        self._resumed_clips_a_batch = None
        if before is not None and before != now:
            done = batches
            if progress.ready < len(self.splits.train) // before:
                step = self.trainer.accumulate_grad_batches
                # At least one step is left, for an epoch's last one is what leads to its validation.
                done = min(progress.ready * before // now, batches - 1) // step * step
            # Not set: between a step and its end, Lightning has completed one batch less than are ready.
            progress.increment_by(done - progress.ready)
        return progress.ready

    def _clips_a_batch(self) -> int:
        """Of all processes together."""
        return self.loading.batch_size * self._place()[1]

    def state_dict(self) -> dict[str, int]:
        """What tells a resumed run where in the epoch it was."""
        return {"clips_a_batch": self._clips_a_batch()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._resumed_clips_a_batch = state_dict["clips_a_batch"]

    def eval_loader(
        self,
        entries: list[ClipEntry],
        segments: int,
        crops: int,
        partners: Collection[str] = (),
        batch_size: int | None = None,
    ) -> DataLoader:
        """Segments x crops of each of some clips; `partners`: see `ClipDataset`."""
        dataset = self._dataset(entries, None, segments=segments, crops=crops, partners=partners)
        batch_size = batch_size or self.loading.batch_size
        return self._loader(dataset, EvalSampler(len(entries), segments, batch_size, self.seed, *self._place()))

    def part_loader(self, part: str, partners: Collection[str] = ()) -> DataLoader:
        """All views of each clip of a part: train, val or test; `partners`: see `ClipDataset`."""
        return self.eval_loader(self.splits.parts()[part], self.loading.segments, self.loading.crops, partners)

    def val_dataloader(self) -> DataLoader | list:
        """The centre of each validation clip."""
        return self.eval_loader(self.splits.val, 1, 1) if self.splits.val else []

    def test_dataloader(self) -> DataLoader | list:
        return self.part_loader("test") if self.splits.test else []

    def require_test(self) -> None:
        """Raises:
        InputError: there are no test clips.
        """
        if not self.splits.test:
            raise InputError("the data set has no test clips; data=csv takes a list of them, data=folder a test/")

    def transfer_batch_to_device(self, batch: Sample, device: torch.device, dataloader_idx: int) -> Any:
        """Move the tensors; messages stay."""
        return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def on_after_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Batch:
        return self.transform.to(batch["frames"].device)(batch)
