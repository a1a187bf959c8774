"""Samples to a batch as models take it, on the device: augment, cut, normalise, take spectrograms."""

from typing import TypedDict

import torch
from torch import Tensor, nn

from avmae.clip import ClipSpec
from avmae.data.augment import AugmentSpec, cut_boxes, random_erase
from avmae.data.dataset import Sample
from avmae.data.degrade import Degradation, degrade_audio, degrade_video
from avmae.data.rand_augment import rand_augment
from avmae.data.spectrogram import LogMel


class Batch(TypedDict):
    """What the tasks get; B counts views."""

    video: Tensor  # (B, 3, T, H, W) float32, normalised
    audio: Tensor  # (B, 1, L, F) float32, normalised log-mel; of no meaning where `has_audio` is False
    has_audio: Tensor  # (B,) bool
    label: Tensor  # (B,) int64; of clips with many labels (B, classes) int64, 1 for each of theirs
    clip_id: Tensor  # (B,) int64; -1 where the view is not to be scored
    view: Tensor  # (B,) int64
    windows: int  # how many were read for it, each for one view or more
    unreadable: list[str]  # what went wrong with windows that could not be read


class BatchTransform(nn.Module):
    """Samples to a `Batch`, on the device the samples are on; `augment` is what is done to views that have seeds."""

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
            other, rate = sample.get("others", {}).get(degradation.kind), self.clip.sample_rate
            waveform, has_audio = degrade_audio(waveform, has_audio, degradation, numbers, rate, other)
        video = (video - self.mean) / self.std
        if seeds:
            random_erase(video, seeds, self.augment)
        return Batch(
            video=video,
            audio=self.spectrogram(waveform).repeat_interleave(repeats, 0),
            has_audio=has_audio.repeat_interleave(repeats),
            label=sample["label"].repeat_interleave(repeats, 0),
            clip_id=sample["clip_id"].repeat_interleave(repeats),
            view=view.flatten(),
            windows=len(view),
            unreadable=sample["unreadable"],
        )
