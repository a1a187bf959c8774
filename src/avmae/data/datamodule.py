"""A data set to batches on the device, for training, validation and test."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from avmae.clip import ClipSpec
from avmae.data.augment import AugmentSpec, cut_boxes, random_erase
from avmae.data.dataset import ClipDataset, Sample, collate
from avmae.data.degrade import Degradation, degrade_sound, degrade_video
from avmae.data.embedded.avdigits import write_avdigits
from avmae.data.embedded.synthetic import write_synthetic
from avmae.data.manifest import NAME, manifest_root, read_manifest
from avmae.data.rand_augment import rand_augment
from avmae.data.sampling import EvalSampler, TrainSampler
from avmae.data.sources.csv import common_folder, read_csv
from avmae.data.sources.folder import read_folder
from avmae.data.sources.shards import read_packed
from avmae.data.sources.ucf101 import CLASSES_WITH_SOUND, read_ucf101
from avmae.data.spectrogram import LogMel
from avmae.data.splits import ClipEntry, Splits, few_labels, keep_classes
from avmae.data.workers import CONTEXT, Readings, explain, prepare_worker
from avmae.errors import InputError


class Batch(TypedDict):
    """What the tasks get; B counts views.

    Keys:
        video: (B, 3, T, H, W) float32, normalised.
        audio: (B, 1, L, F) float32, normalised log-mel; of no meaning where ``has_audio`` is False.
        has_audio: (B,) bool.
        label: (B,) int64.
        clip_id: (B,) int64; -1 where the view is not to be scored.
        view: (B,) int64.
        windows: how many were read for it, each for one view or more.
        unreadable: what went wrong with windows that could not be read.
    """

    video: Tensor
    audio: Tensor
    has_audio: Tensor
    label: Tensor
    clip_id: Tensor
    view: Tensor
    windows: int
    unreadable: list[str]


class BatchTransform(nn.Module):
    """Samples to a `Batch`, on the device the samples are on: augment, cut, normalise, spectrogram.

    Args:
        clip: shape of a window.
        augment: what is done to views that have seeds.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, clip: ClipSpec, augment: AugmentSpec | None = None) -> None:
        super().__init__()
        self.clip, self.augment = clip, augment or AugmentSpec()
        self.spectrogram = LogMel(clip)
        # Buffers, for a tensor made from numbers in every step would have to wait for the device.
        self.register_buffer("mean", torch.tensor(clip.pixel_mean).view(3, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(clip.pixel_std).view(3, 1, 1, 1), persistent=False)

    def forward(self, sample: Sample, degradation: Degradation | None = None) -> Batch:
        """Expand each of B samples into its R views, and degrade them where asked to."""
        repeats = sample["boxes"].shape[1]
        view = sample["view"][:, None] + torch.arange(repeats, device=sample["view"].device)
        frames, boxes, portrait, seeds = sample["frames"], sample["boxes"], sample["portrait"], sample["seeds"]
        if seeds and self.augment.rand_operations:
            # Before the cut, as VideoMAE does: shifts are shares of whole frames, and what they move in is rarely cut.
            frames = rand_augment(frames, sample["widths"], seeds, self.augment)
            boxes, portrait = boxes.flatten(0, 1)[:, None], portrait.repeat_interleave(repeats)
        video = cut_boxes(frames, boxes, portrait, self.clip.size)
        waveform, has_audio = sample["waveform"], sample["has_audio"]
        if degradation is not None:
            numbers = sample["clip_id"].clamp(min=0) * 1000 + sample["view"]
            video = degrade_video(video, degradation, numbers.repeat_interleave(repeats))
            other = (sample["other"], sample["has_other"]) if "other" in sample else None
            waveform, has_audio = degrade_sound(waveform, has_audio, degradation, numbers, other)
        video = (video - self.mean) / self.std
        if seeds:
            random_erase(video, seeds, self.augment)
        return Batch(
            video=video,
            audio=self.spectrogram(waveform).repeat_interleave(repeats, 0),
            has_audio=has_audio.repeat_interleave(repeats),
            label=sample["label"].repeat_interleave(repeats),
            clip_id=sample["clip_id"].repeat_interleave(repeats),
            view=view.flatten(),
            windows=len(view),
            unreadable=sample["unreadable"],
        )


class ClipDataModule(L.LightningDataModule):
    """Reads clips by the lists of a data set.

    Args:
        splits: the clips of each part.
        clip: shape of a window.
        root: folder whose manifest says which clips cannot be read; None where there is none.
        manifest: a file elsewhere that is to be heeded instead.
        audio: read the sound, too; False for systems of pictures alone.
        batch_size: windows a process and step.
        workers: reading processes for each training process.
        segments: windows of each clip at test time.
        crops: boxes of each test window.
        augment: how training views are drawn.
        seed: of the run.
        only: names of the classes to keep, or `with_sound` for the 51 of UCF101 that have it; None for all.
        train_share: of each class's training clips, at least one; the rest is left out (few labels).
        timeout: seconds to wait for a batch before the run ends, for a reading process that hangs; 0 waits forever.

    Attributes:
        listed: the clips of each part before unreadable ones and labels beyond `train_share` are left out.
        splits: those that are left.
        root: folder that a manifest's paths start from.

    Raises:
        InputError: a setting is out of range, or the manifest is missing, damaged or of other clips.
    """

    def __init__(
        self,
        splits: Splits,
        clip: ClipSpec,
        root: str | Path | None = None,
        manifest: str | Path | None = None,
        audio: bool = True,
        batch_size: int = 8,
        workers: int = 2,
        segments: int = 1,
        crops: int = 1,
        augment: AugmentSpec | None = None,
        seed: int = 0,
        only: list[str] | str | None = None,
        train_share: float = 1.0,
        timeout: float = 180,
    ) -> None:
        super().__init__()
        if not 0 < train_share <= 1:
            raise InputError(f"data.train_share={train_share} must be above 0 and at most 1")
        counts = (batch_size, workers, segments, crops)
        if not all(isinstance(count, int) for count in counts):
            raise InputError("data: batch_size, workers, segments and crops are whole numbers")
        if batch_size < 1 or workers < 0 or segments < 1 or crops < 1 or timeout < 0:
            raise InputError("data: batch_size, segments and crops are at least 1, workers and timeout at least 0")
        if only is not None:
            names = [only] if isinstance(only, str) else list(map(str, only))
            splits = keep_classes(splits, CLASSES_WITH_SOUND if only == "with_sound" else names)
        self.listed, self.root = splits, root
        if root is not None:
            splits = without_unreadable(splits, root, manifest)
        self.splits = splits if train_share == 1 else few_labels(splits, train_share, seed)
        self.clip, self.audio, self.batch_size, self.workers = clip, audio, batch_size, workers
        self.segments, self.crops, self.seed, self.timeout = segments, crops, seed, timeout
        self._readings: list[Readings] = []
        self.augment = augment or AugmentSpec()
        self.transform = BatchTransform(clip, self.augment)
        self._resumed_clips_a_batch: int | None = None

    @property
    def classes(self) -> list[str]:
        """Names by label."""
        return self.splits.classes

    def _loader(self, dataset: ClipDataset, sampler: TrainSampler | EvalSampler) -> DataLoader:
        workers: dict[str, Any] = {}
        if self.workers:
            dataset.readings = Readings(self.workers, dataset.entries)
            self._readings.append(dataset.readings)
            workers = {"persistent_workers": True, "timeout": self.timeout, "multiprocessing_context": CONTEXT}
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.workers,
            worker_init_fn=prepare_worker,
            pin_memory=torch.cuda.is_available(),
            **workers,
        )

    def explain(self, error: BaseException) -> str | None:
        """Which reading process died or hangs, at which clip, if that is what an error of training is about."""
        return explain(str(error), self._readings)

    def train_sampler(self) -> TrainSampler:
        """This process's part of each epoch.

        Raises:
            InputError: there are no training clips, or fewer than one batch.
        """
        if not self.splits.train:
            raise InputError("the data set has no training clips; set data.train")
        trainer = self.trainer
        assert trainer is not None
        return TrainSampler(len(self.splits.train), self.batch_size, self.seed, trainer.global_rank, trainer.world_size)

    def train_dataloader(self) -> DataLoader:
        """Batches of random windows, going on where a resumed run stopped."""
        assert self.trainer is not None
        sampler, fit = self.train_sampler(), self.trainer.fit_loop
        if fit.restarting:
            finished, sampler.start = divmod(self._batches_done(len(sampler)), len(sampler))
            sampler.epoch = self.trainer.current_epoch + finished
        else:
            # A checkpoint of an epoch's end still counts that epoch's batches.
            sampler.epoch = fit.epoch_progress.current.processed
        return self._loader(ClipDataset(self.splits.train, self.clip, self.audio, self.augment), sampler)

    def _batches_done(self, batches: int) -> int:
        """How much of the epoch that a run is resumed in is done.

        After another number of processes or another batch size, Lightning's count, by which it ends the epoch, is put
        into today's batches, down to the start of a step: clips may be read again, but none is left out.

        Args:
            batches: in an epoch.
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
        assert self.trainer is not None
        return self.batch_size * self.trainer.world_size

    def state_dict(self) -> dict[str, int]:
        """What tells a resumed run where in the epoch it was."""
        return {"clips_a_batch": self._clips_a_batch()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take it up."""
        self._resumed_clips_a_batch = state_dict["clips_a_batch"]

    def _eval_loader(self, entries: list[ClipEntry], segments: int, crops: int, partners: bool = False) -> DataLoader:
        dataset = ClipDataset(entries, self.clip, self.audio, None, segments, crops, partners)
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = EvalSampler(len(entries), segments, self.batch_size, self.seed, rank, world)
        return self._loader(dataset, sampler)

    def val_dataloader(self) -> DataLoader | list:
        """The centre of each validation clip."""
        return self._eval_loader(self.splits.val, 1, 1) if self.splits.val else []

    def test_dataloader(self) -> DataLoader | list:
        """Segments x crops of each test clip."""
        return self.part_loader("test") if self.splits.test else []

    def on_after_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Batch:
        """Cut, normalise and take spectrograms on the device."""
        return self.transform.to(batch["frames"].device)(batch)

    def require_test(self) -> None:
        """Raises:
        InputError: there are no test clips.
        """
        if not self.splits.test:
            raise InputError(
                "the data set has no test clips; a test list (data=csv) or a test/ folder (data=folder) has them"
            )

    def part_loader(self, part: str, partners: bool = False) -> DataLoader:
        """Segments x crops of each clip of a part: train, val or test; `partners`: see `ClipDataset`."""
        return self._eval_loader(getattr(self.splits, part), self.segments, self.crops, partners)

    def transfer_batch_to_device(self, batch: Sample, device: torch.device, dataloader_idx: int) -> Any:
        """Move the tensors; messages stay."""
        return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def without_unreadable(splits: Splits, root: str | Path, manifest: str | Path | None = None) -> Splits:
    """Leave out of training and validation what a manifest calls unreadable.

    Test clips stay: what is not scored has to be counted.

    Args:
        splits: of the data set.
        root: folder of the data set, and of its manifest if it has one.
        manifest: one that lies elsewhere, and then has to be there.

    Raises:
        InputError: the manifest is missing, damaged or of other clips.
    """
    root = Path(root).expanduser()
    file = Path(manifest).expanduser() if manifest else root / NAME
    if manifest and not file.is_file():
        raise InputError(
            f"data.manifest={manifest} does not exist; python -m avmae.prepare output={manifest} writes it"
        )
    records = read_manifest(file)
    # Lists may have absolute paths where the root is relative.
    listed = [[(os.path.abspath(str(e.path)), e) for e in part] for part in (splits.train, splits.val, splits.test)]
    readable: dict[str, bool] = {}
    for base in (root, manifest_root(file)) if manifest else (root,):
        readable = {os.path.abspath(base / path): record.readable for path, record in records.items()}
        if any(path in readable for part in listed for path, _ in part):
            break
    else:
        if manifest:
            raise InputError(
                f"data.manifest={manifest} has none of the data set's clips; run avmae.prepare on this data set, "
                "or give the data.root that its paths start from"
            )
    train, val, _ = ([entry for path, entry in part if readable.get(path, True)] for part in listed)
    return replace(splits, train=train, val=val)


class UCF101DataModule(ClipDataModule):
    """UCF101 by its official lists.

    Args:
        root: see `read_ucf101`.
        fold: 1, 2 or 3.
        val_groups: see `read_ucf101`.
        reading: see `ClipDataModule`.
    """

    def __init__(self, root: str, fold: int = 1, val_groups: int = 2, **reading: Any) -> None:
        super().__init__(read_ucf101(root, fold, val_groups), root=root, **reading)


class CSVDataModule(ClipDataModule):
    """Lists of `path label`; see `read_csv`. Without a root, the manifest is that of all clips' common folder."""

    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        root: str | None = None,
        classes: int | list[str] | None = None,
        **reading: Any,
    ) -> None:
        splits = read_csv(train, val, test, root, classes)
        super().__init__(splits, root=root or common_folder(splits), **reading)


class FolderDataModule(ClipDataModule):
    """A class per subfolder; see `read_folder`."""

    def __init__(self, root: str, val_share: float = 0.1, **reading: Any) -> None:
        super().__init__(read_folder(root, val_share), root=root, **reading)


class ShardsDataModule(ClipDataModule):
    """A packed data set, on a disk or in an object store; see `read_packed`."""

    def __init__(self, root: str, fold: int = 1, val_groups: int = 2, **reading: Any) -> None:
        super().__init__(read_packed(str(root), fold, val_groups), **reading)


class SyntheticDataModule(UCF101DataModule):
    """The embedded miniature of UCF101, written at first use.

    Args:
        root: see `write`, and so the next three.
        groups: per class.
        clips_per_group: of each.
        classes: how many.
        workers: reading processes, and as many that write.
        reading: see `UCF101DataModule`.
    """

    write = staticmethod(write_synthetic)

    def __init__(
        self, root: str, groups: int, clips_per_group: int, classes: int, workers: int = 2, **reading: Any
    ) -> None:
        self.write(Path(root), groups=groups, clips_per_group=clips_per_group, classes=classes, workers=max(1, workers))
        super().__init__(root, workers=workers, **reading)


class AVDigitsDataModule(SyntheticDataModule):
    """Written and spoken digits, written at first use."""

    write = staticmethod(write_avdigits)
