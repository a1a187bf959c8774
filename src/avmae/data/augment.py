"""Boxes to cut from each picture, drawn in the worker, and the cut itself, done on the device for a whole batch.

A box is (left, top, right, bottom) as shares of width and height; left and right swapped mirror the picture. Because
boxes are relative, the pictures can all be scaled to one canvas first, whatever their aspect, and still be cut as if
they were in their own.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Box = tuple[float, float, float, float]


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
        scale: range of the share of the picture's area; VideoMAE fine-tunes with 0.5 to 1.
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


def cut_boxes(frames: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut each clip's boxes from all its pictures and scale them bilinearly.

    Args:
        frames: (B, T, H, W, 3) uint8.
        boxes: (B, R, 4) float32.
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
    grid = F.affine_grid(
        torch.stack([across, down], 1), [clips * repeats, times * channels, size, size], align_corners=False
    )
    cut = F.grid_sample(planes, grid, padding_mode="border", align_corners=False)
    return cut.unflatten(1, (times, channels)).transpose(1, 2)
