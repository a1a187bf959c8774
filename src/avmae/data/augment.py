"""Boxes to cut from each picture, drawn in the worker; the cut itself and what follows it, done on the device.

A box is (left, top, right, bottom) as shares of width and height; left and right swapped mirror the picture.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from avmae.errors import InputError

Box = tuple[float, float, float, float]

RAND_BINS = 101
"""Steps of RandAugment's scale of magnitudes."""


@dataclass(frozen=True)
class AugmentSpec:
    """How training views are drawn.

    Args:
        scale: smallest and largest share of the picture's area that is cut.
        ratio: smallest and largest width / height of what is cut.
        flip: probability of mirroring.
        repeats: views cut from each decoded window (VideoMAE's repeated sampling).
        rand_operations: of RandAugment for each view, the same in all of its pictures; 0 for none (VideoMAE: 4).
        rand_magnitude: of these operations, 10 being the strongest (VideoMAE: 7).
        rand_deviation: of the magnitude, drawn once a view from a normal distribution (VideoMAE: 0.5, once an
            operation).
        erase: probability of replacing a box by noise, the same box in all pictures of a view (VideoMAE: 0.25).
    """

    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    repeats: int = 1
    rand_operations: int = 0
    rand_magnitude: float = 7.0
    rand_deviation: float = 0.5
    erase: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.scale[0] <= self.scale[1] <= 1 and 0 < self.ratio[0] <= self.ratio[1]):
            raise InputError("augment: scale must rise within (0, 1] and ratio must rise from above 0")
        if not (0 <= self.flip <= 1 and 0 <= self.erase <= 1 and 0 <= self.rand_magnitude <= 10):
            raise InputError("augment: flip and erase are probabilities, rand_magnitude is between 0 and 10")
        if self.repeats < 1 or self.rand_operations < 0 or self.rand_deviation < 0:
            raise InputError("augment: repeats is at least 1, rand_operations and rand_deviation are not negative")


def random_box(
    rng: np.random.Generator,
    aspect: float,
    scale: tuple[float, float] = (0.5, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
) -> Box:
    """Draw a box as torchvision's `RandomResizedCrop` draws it.

    Args:
        rng: random generator.
        aspect: width / height of the picture as it is to be seen.
        scale: range of the share of the picture's area; VideoMAE fine-tunes with 0.08 to 1.
        ratio: range of width / height of what is cut, drawn log-uniformly.
        flip: probability of mirroring.
    """
    left, top, right, bottom = center_boxes(aspect, 1)[0]
    for _ in range(10):
        area, shape = rng.uniform(*scale), math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        width, height = math.sqrt(area * shape / aspect), math.sqrt(area / shape * aspect)
        if width <= 1 and height <= 1:
            left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
            right, bottom = left + width, top + height
            break
    return (right, top, left, bottom) if rng.random() < flip else (left, top, right, bottom)


def center_boxes(aspect: float, crops: int) -> list[Box]:
    """Squares as large as the short side, evenly spaced along the long side; one is the centre.

    Args:
        aspect: width / height of the picture as it is to be seen.
        crops: how many; VideoMAE tests with 3.
    """
    width, height = min(1.0, 1 / aspect), min(1.0, aspect)
    places = [0.5] if crops == 1 else [i / (crops - 1) for i in range(crops)]
    return [((1 - width) * p, (1 - height) * p, (1 - width) * p + width, (1 - height) * p + height) for p in places]


def cut_boxes(frames: Tensor, boxes: Tensor, portrait: Tensor, size: int) -> Tensor:
    """Cut each clip's boxes from all its pictures and scale them bilinearly.

    Args:
        frames: (B, T, H, W, 3) uint8.
        boxes: (B, R, 4) float32.
        portrait: (B,) bool, of frames that lie on their side; what is cut from them is set upright.
        size: height and width of the result.

    Returns:
        (B x R, 3, T, size, size) float32 in [0, 1], the R boxes of a clip one after the other.
    """
    clips, times, height, width, channels = frames.shape
    repeats = boxes.shape[1]
    planes = frames.permute(0, 1, 4, 2, 3).reshape(clips, times * channels, height, width).float().div_(255)
    if repeats > 1:
        planes = planes.repeat_interleave(repeats, 0)
    left, top, right, bottom = (boxes.reshape(-1, 4) * 2 - 1).unbind(1)
    zero = left.new_zeros(left.shape)
    across = torch.stack([(right - left) / 2, zero, (right + left) / 2], -1)
    down = torch.stack([zero, (bottom - top) / 2, (bottom + top) / 2], -1)
    theta = torch.stack([across, down], 1)
    turned = torch.cat([theta[..., :2].flip(-1), theta[..., 2:]], -1)
    theta = torch.where(portrait.repeat_interleave(repeats)[:, None, None], turned, theta)
    grid = F.affine_grid(theta, [clips * repeats, times * channels, size, size], align_corners=False)
    cut = F.grid_sample(planes, grid, padding_mode="border", align_corners=False)
    return cut.unflatten(1, (times, channels)).transpose(1, 2)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch's global generator on the CPU, from which torchvision draws, set for a while."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def rand_augment(video: Tensor, seeds: Sequence[int], spec: AugmentSpec) -> Tensor:
    """RandAugment (Cubuk et al. 2020) by torchvision's operations, each view by its own seed.

    Args:
        video: (B, 3, T, H, W) float32 in [0, 1].
        seeds: of each view.
        spec: operations and their magnitude.
    """
    if not spec.rand_operations:
        return video
    views = []
    for view, seed in zip(video.transpose(1, 2), seeds, strict=True):
        with _seeded(seed):
            magnitude = (spec.rand_magnitude + spec.rand_deviation * float(torch.randn(()))) / 10
            level = round(min(max(magnitude, 0.0), 1.0) * (RAND_BINS - 1))
            transform = v2.RandAugment(
                spec.rand_operations, level, RAND_BINS, interpolation=v2.InterpolationMode.BILINEAR, fill=[0.5] * 3
            )
            views.append(transform(view))
    return torch.stack(views).transpose(1, 2)


def random_erase(video: Tensor, seeds: Sequence[int], spec: AugmentSpec) -> Tensor:
    """Replace a box of some views by normal noise (Zhong et al. 2020, per pixel), alike in all pictures of a view.

    Args:
        video: (B, 3, T, H, W) float32, normalised.
        seeds: of each view.
        spec: the probability.
    """
    if not spec.erase:
        return video
    transform = v2.RandomErasing(spec.erase, scale=(0.02, 1 / 3), value="random")
    views = []
    for view, seed in zip(video.transpose(1, 2), seeds, strict=True):
        with _seeded(seed + 1):
            views.append(transform(view))
    return torch.stack(views).transpose(1, 2)
