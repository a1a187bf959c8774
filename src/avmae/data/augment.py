"""Boxes to cut from each frame, drawn in the worker; the cut itself and random erasing, done on the device."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from avmae.errors import InputError

Box = tuple[float, float, float, float]
"""Left, top, right, bottom as shares of width and height; left and right swapped mirror the frame."""

MULTISCALE = (1.0, 0.875, 0.75, 0.66)
"""Sides of VideoMAE's pretraining crops as shares of the frame's short side (its datasets.py)."""

SNAP = 3
"""Sides of these crops that are closer than this to the cut's size, in pixels, become that size."""

ERASE_AREA = (0.02, 1 / 3)
ERASE_RATIO = (0.3, 1 / 0.3)
"""Share of the area and height / width of an erased box (VideoMAE's random_erasing.py)."""


@dataclass(frozen=True)
class AugmentSpec:
    """How training views are drawn. In brackets: VideoMAE's values for fine-tuning.

    Raises:
        InputError: a value is out of range.
    """

    crop: str = "random"  # any box within scale and ratio; `multiscale`: one of four sizes at one of 13 places
    scale: tuple[float, float] = (0.5, 1.0)  # smallest and largest share of the frame's area (0.08 to 1)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # smallest and largest width / height
    flip: float = 0.5  # probability of mirroring
    repeats: int = 1  # views cut from each decoded window (2)
    rand_operations: int = 0  # of RandAugment drawn for each view, each applied with probability 0.5 (4)
    rand_magnitude: float = 7.0  # mean of an operation's magnitude, 10 being the strongest
    rand_std: float = 0.5  # standard deviation of the magnitude, which is drawn once an operation
    erase: float = 0.0  # probability of replacing a box by noise, the same in all frames of a view (0.25)

    def __post_init__(self) -> None:
        if self.crop not in ("random", "multiscale"):
            raise InputError(f"augment.crop={self.crop} does not exist; there are random and multiscale")
        if not (0 < self.scale[0] <= self.scale[1] <= 1 and 0 < self.ratio[0] <= self.ratio[1]):
            raise InputError("augment: scale must rise within (0, 1] and ratio must rise from above 0")
        if not (0 <= self.flip <= 1 and 0 <= self.erase <= 1 and 0 <= self.rand_magnitude <= 10):
            raise InputError("augment: flip and erase are probabilities, rand_magnitude is between 0 and 10")
        if self.repeats < 1 or self.rand_operations < 0 or self.rand_std < 0:
            raise InputError("augment: repeats is at least 1, rand_operations and rand_std are not negative")


def training_box(rng: np.random.Generator, spec: AugmentSpec, aspect: float, short_side: int, size: int) -> Box:
    """Draw the box of one view, mirrored or not.

    Aspect is width / height as displayed; `multiscale` cuts whole pixels of the frame, of that short side, to be scaled
    to a height and width of `size`.
    """
    if spec.crop == "random":
        box = random_box(rng, aspect, spec.scale, spec.ratio)
    else:
        boxes = multiscale_boxes(round(short_side * max(aspect, 1)), round(short_side / min(aspect, 1)), size)
        box = boxes[rng.integers(len(boxes))]
    left, top, right, bottom = box
    return (right, top, left, bottom) if rng.random() < spec.flip else box


def random_box(rng: np.random.Generator, aspect: float, scale: tuple[float, float], ratio: tuple[float, float]) -> Box:
    """As torchvision's `RandomResizedCrop` and VideoMAE draw it, but for their rounding to whole pixels.

    Scale and ratio are those of `AugmentSpec`, the latter drawn log-uniformly; the aspect is that as displayed.
    """
    for _ in range(10):
        area, shape = rng.uniform(*scale), math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        width, height = math.sqrt(area * shape / aspect), math.sqrt(area / shape * aspect)
        if width <= 1 and height <= 1:
            left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
            return (left, top, left + width, top + height)
    # Nothing fits: the centre, as much of it as the range of ratios allows.
    width, height = min(1.0, ratio[1] / aspect), min(1.0, aspect / ratio[0])
    return ((1 - width) / 2, (1 - height) / 2, (1 + width) / 2, (1 + height) / 2)


def multiscale_boxes(width: int, height: int, size: int) -> list[Box]:
    """The boxes of VideoMAE's pretraining, equally likely: its `GroupMultiScaleCrop` with all of its fixed places.

    Width and height of a box are each one of `MULTISCALE`, at most one step apart. It lies in a corner, at the middle
    of a side, in the centre, or half way from the centre to a corner.

    Lengths are in pixels; the cut is scaled to `size`. There are 10 pairs of sides x 13 places; where a box is as high
    or wide as the frame, places coincide.
    """
    sides = [int(min(width, height) * share) for share in MULTISCALE]
    sides = [size if abs(side - size) < SNAP else side for side in sides]
    places = [(x, y) for x in (0, 2, 4) for y in (0, 2, 4)] + [(x, y) for x in (1, 3) for y in (1, 3)]
    boxes = []
    for i, down in enumerate(sides):
        for across in sides[max(0, i - 1) : i + 2]:
            step_x, step_y = (width - across) // 4, (height - down) // 4
            for x, y in places:
                left, top = x * step_x, y * step_y
                boxes.append((left / width, top / height, (left + across) / width, (top + down) / height))
    return boxes


def center_boxes(aspect: float, crops: int) -> list[Box]:
    """Squares as large as the short side, evenly spaced along the long side; one is the centre."""
    width, height = min(1.0, 1 / aspect), min(1.0, aspect)
    places = [0.5] if crops == 1 else [i / (crops - 1) for i in range(crops)]
    return [((1 - width) * p, (1 - height) * p, (1 - width) * p + width, (1 - height) * p + height) for p in places]


def cut_boxes(frames: Tensor, boxes: Tensor, portrait: Tensor, size: int) -> Tensor:
    """Cut each clip's boxes from all its frames and scale them bilinearly.

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
    planes = planes.repeat_interleave(repeats, 0) if repeats > 1 else planes
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


def random_erase(video: Tensor, seeds: Sequence[int], spec: AugmentSpec) -> None:
    """Replace a box of some views by normal noise, in place (Zhong et al. 2020; VideoMAE's mode `pixel` with `cube`).

    The box is the same in all frames of a view, the noise is new in each; `video` is (B, 3, T, H, W) float32,
    normalised, and every view has its seed.
    """
    height, width = video.shape[-2:]
    for view, seed in zip(video, seeds, strict=True):
        # A stream of its own beside RandAugment's, which has the same seed.
        rng = np.random.default_rng((seed, 1))
        if rng.random() < spec.erase:
            top, left, bottom, right = erased_box(rng, height, width)
            view[..., top:bottom, left:right].normal_(generator=torch.Generator(video.device).manual_seed(seed))


def erased_box(rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """Draw top, left, bottom and right, in pixels, as VideoMAE does; an empty box if 100 of them do not fit."""
    for _ in range(100):
        area = rng.uniform(*ERASE_AREA) * height * width
        shape = math.exp(rng.uniform(math.log(ERASE_RATIO[0]), math.log(ERASE_RATIO[1])))
        rows, columns = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if rows < height and columns < width:
            top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
            return top, left, top + rows, left + columns
    return 0, 0, 0, 0
