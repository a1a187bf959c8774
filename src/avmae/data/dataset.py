"""Requests to samples: what a worker does for one clip."""

from collections.abc import Collection, Sequence
from contextlib import nullcontext, suppress
from itertools import chain
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from avmae.clip import ClipSpec
from avmae.data.augment import AugmentSpec, Box, center_boxes, training_box
from avmae.data.decode.audio import Waveform
from avmae.data.decode.decoded import read_decoded
from avmae.data.decode.window import Window, read_window
from avmae.data.sampling import Request
from avmae.data.splits import ClipEntry
from avmae.data.workers import Readings
from avmae.errors import MediaError

TRIES = 10


class Sample(TypedDict):
    """One decoded window and the boxes to cut from it; a batch of them has a leading axis B."""

    frames: Tensor  # (T, H, W, 3) uint8, H the short side: portrait frames lie on their side, rows as columns
    waveform: Tensor  # (samples,) float32 in [-1, 1]
    boxes: Tensor  # (R, 4) float32, as they lie in the frames
    portrait: Tensor  # () bool, whether frames and boxes lie on their side
    has_audio: Tensor  # () bool
    label: Tensor  # () int64; of clips with many labels (classes,) int64, 1 for each of theirs
    clip_id: Tensor  # () int64, the clip's index in its part; -1 where it is not to be scored
    view: Tensor  # () int64, number of the first of the R views
    widths: list[int]  # of the frames, in pixels, without padding
    seeds: list[int]  # of what is drawn for each of the R views on the device; none at test time
    unreadable: list[str]  # what went wrong with clips that could not be read
    others: NotRequired[dict[str, tuple[Tensor, Tensor]]]  # by `partners`, another clip's waveform, and if there is one


class ClipDataset(Dataset[Sample]):
    """Reads one window a request.

    In training, where `augment` says how, the window is placed at random and its boxes are drawn; a clip that cannot be
    read is replaced by another and named in the sample. At test time so many segments, windows of a clip, are evenly
    spaced, with so many boxes or crops, and a clip that cannot be read comes back empty with ``clip_id`` -1. With each
    clip that has audio that of another is read for each of the `partners`, some of `OF_OTHERS`.

    With a `cache` files are decoded once, into that folder. With `many_labels`, of so many classes, labels
    are vectors.

    Attributes:
        readings: where reading processes note what they read, if there are any.
    """

    def __init__(
        self,
        entries: Sequence[ClipEntry],
        clip: ClipSpec,
        audio: bool = True,
        augment: AugmentSpec | None = None,
        segments: int = 1,
        crops: int = 1,
        partners: Collection[str] = (),
        cache: Path | None = None,
        many_labels: int | None = None,
    ) -> None:
        self.entries, self.clip, self.audio, self.augment, self.cache = entries, clip, audio, augment, cache
        self.segments, self.crops, self.partners, self.many_labels = segments, crops, partners, many_labels
        self._silent: set[tuple[int, float]] = set()
        self.readings: Readings | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, request: Request) -> Sample:
        rng = np.random.default_rng(request.seed)
        if self.augment is None:
            return self._test_sample(request)
        index, unreadable, last = request.index, list[str](), None
        for _ in range(TRIES):
            try:
                window = self._read(index, rng.random())
            except MediaError as error:
                # A clip that takes another's place has a window of its own to be counted for.
                unreadable, last = unreadable or [str(error)], error
                index = int(rng.integers(len(self.entries)))
                continue
            spec, short_side = self.augment, min(window.frames.shape[1:3])
            boxes = [training_box(rng, spec, window.aspect, short_side, self.clip.size) for _ in range(spec.repeats)]
            seeds = [int(seed) for seed in rng.integers(2**48, size=spec.repeats)]
            return make_sample(window, boxes, self._label(index), index, 0, unreadable, seeds)
        raise MediaError(f"{TRIES} clips in a row cannot be read; the last: {last}")

    def _test_sample(self, request: Request) -> Sample:
        position = 0.5 if self.segments == 1 else request.segment / (self.segments - 1)
        unreadable = []
        try:
            window = self._read(request.index, position)
        except MediaError as error:
            unreadable = [str(error)]
            side = self.clip.canvas[0]
            frames = np.zeros((self.clip.frames, side, side, 3), np.uint8)
            window = Window(frames, np.zeros(self.clip.samples, np.float32), False, 0.0, 1.0)
        clip_id = request.index if request.scored and not unreadable else -1
        boxes, label = center_boxes(window.aspect, self.crops), self._label(request.index)
        sample = make_sample(window, boxes, label, clip_id, request.segment * self.crops, unreadable)
        for kind in self.partners:
            other = self._partner(request.index, position, kind) if window.has_audio else None
            waveform = torch.zeros_like(sample["waveform"]) if other is None else torch.from_numpy(other)
            sample.setdefault("others", {})[kind] = waveform, torch.tensor(other is not None)
        return sample

    def _partner(self, index: int, position: float, kind: str) -> Waveform | None:
        """The audio of another clip, as `kind` asks for; None if there is none that has any.

        Which one is a function of the clip's number: not of the run's seed, nor of what is read beside it.
        """
        own = self.entries[index]
        for other in np.random.default_rng(index).permutation(len(self.entries)).tolist():
            entry = self.entries[other]
            same_scene = (entry.label, entry.group) == (own.label, own.group) and own.group and other != index
            another_class = set(entry.labels).isdisjoint(own.labels)
            if not (same_scene if kind == "scene" else another_class) or (other, position) in self._silent:
                continue
            # What cannot be read has no audio either.
            with suppress(MediaError):
                window = self._read(other, position)
                if window.has_audio:
                    return window.waveform
            self._silent.add((other, position))
        return None

    def _label(self, index: int) -> int | list[int]:
        entry = self.entries[index]
        return entry.labels[0] if self.many_labels is None else entry.many_hot(self.many_labels)

    def _read(self, index: int, position: float) -> Window:
        entry = self.entries[index]
        audio = self.audio and (entry.audio or True)
        with self.readings.of(index) if self.readings else nullcontext():
            try:
                if self.cache is not None:
                    return read_decoded(self.cache, entry.path, self.clip, position, audio, entry.between)
                return read_window(entry.path, self.clip, position, self.clip.canvas, audio, entry.between)
            except MediaError as error:
                # Of a file's clips, each is named and counted.
                raise MediaError(str(error).replace(str(entry.path), str(entry), 1)) from error


def make_sample(
    window: Window,
    boxes: list[Box],
    label: int | list[int],
    clip_id: int = 0,
    view: int = 0,
    unreadable: list[str] | None = None,
    seeds: list[int] | None = None,
) -> Sample:
    """A window and the boxes to cut from it as tensors."""
    frames, places = torch.from_numpy(window.frames), torch.tensor(boxes, dtype=torch.float32)
    portrait = frames.shape[1] > frames.shape[2]
    if portrait:
        frames, places = frames.transpose(1, 2), places[:, [1, 0, 3, 2]]
    return Sample(
        frames=frames,
        waveform=torch.from_numpy(window.waveform),
        boxes=places,
        portrait=torch.tensor(portrait),
        has_audio=torch.tensor(window.has_audio),
        label=torch.tensor(label),
        clip_id=torch.tensor(clip_id),
        view=torch.tensor(view),
        widths=[frames.shape[2]],
        seeds=seeds or [],
        unreadable=unreadable or [],
    )


def collate(samples: list[Sample]) -> Sample:
    """Stack the tensors of samples, whose frames are padded to the widest, and join their lists."""
    widest = max(sample["frames"].shape[2] for sample in samples)
    samples = [_padded(sample, widest) for sample in samples]
    batch: Any = {}
    for key in samples[0]:
        values = [sample[key] for sample in samples]  # type: ignore[literal-required]
        if key == "others":
            # By kind, waveforms and whether there are any.
            pairs = {kind: zip(*(value[kind] for value in values), strict=True) for kind in values[0]}
            batch[key] = {kind: tuple(map(torch.stack, parts)) for kind, parts in pairs.items()}
        else:
            batch[key] = torch.stack(values) if isinstance(values[0], Tensor) else [*chain(*values)]
    return batch


def _padded(sample: Sample, width: int) -> Sample:
    frames = sample["frames"]
    missing = width - frames.shape[2]
    if not missing:
        return sample
    # The edge is repeated, for a box that ends there is interpolated with what lies beyond.
    frames = torch.cat([frames, frames[:, :, -1:].expand(-1, -1, missing, -1)], 2)
    share = torch.tensor([1 - missing / width, 1.0]).repeat(2)
    return {**sample, "frames": frames, "boxes": sample["boxes"] * share}
