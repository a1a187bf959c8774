"""VideoMAE's RandAugment for the frames of many views: `rand-m7-n4-mstd0.5-inc1` of timm, on the device.

Operations, their names, and how magnitudes become arguments are timm's (`timm.data.auto_augment`); the pixels are
Pillow's within rounding. As in VideoMAE, all frames of a view get the same operations, which see whole frames, before
any box is cut. A frame that lies on its side gets the same distribution of operations, for each along one axis is as
likely as its like along the other, and either sign as the other.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from avmae.data.augment import AugmentSpec

PROBABILITY = 0.5
"""Of applying an operation that was drawn."""

FILL = 128
"""Value, in all channels, of what a geometric operation moves in from outside the frame."""

CPU_FRAMES = 4
"""Frames that a CPU works on at once, so that its cache holds them."""

LUMA = (19595, 38470, 7471)
"""Red's, green's and blue's share of grey, in 65536ths, as Pillow takes them (ITU-R 601-2)."""


class Operation(NamedTuple):
    """One of `ARGUMENTS`, and degrees, share of a side, slope, factor, bits, threshold or summand; 0 where none is."""

    name: str
    argument: float = 0.0


FACTORS = ("ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing")
ARGUMENTS: dict[str, Callable[[float, int], float]] = {
    **dict.fromkeys(("AutoContrast", "Equalize", "Invert"), lambda level, sign: 0.0),
    "Rotate": lambda level, sign: sign * level * 30,
    "PosterizeIncreasing": lambda level, sign: 4 - int(level * 4),
    "SolarizeIncreasing": lambda level, sign: 256 - int(level * 256),
    "SolarizeAdd": lambda level, sign: int(level * 110),
    **dict.fromkeys(FACTORS, lambda level, sign: 1 + sign * level * 0.9),
    **dict.fromkeys(("ShearX", "ShearY"), lambda level, sign: sign * level * 0.3),
    **dict.fromkeys(("TranslateXRel", "TranslateYRel"), lambda level, sign: sign * level * 0.45),
}
"""By operation: its argument at a level from 0 to 1 and a sign, 1 or -1."""


def draw_operations(seed: int, spec: AugmentSpec) -> list[Operation]:
    """The operations that are applied to the view of a seed, in order: of those drawn about half."""
    rng = np.random.default_rng(seed)
    names, operations = list(ARGUMENTS), []
    for index in rng.integers(len(names), size=spec.rand_operations):
        applied, magnitude, sign = rng.random(), rng.normal(spec.rand_magnitude, spec.rand_std), rng.random()
        if applied < PROBABILITY:
            level = min(max(magnitude, 0.0), 10.0) / 10
            operations.append(Operation(names[index], ARGUMENTS[names[index]](level, 1 if sign < 0.5 else -1)))
    return operations


def rand_augment(frames: Tensor, widths: Sequence[int], seeds: Sequence[int], spec: AugmentSpec) -> Tensor:
    """Draw and apply each view's operations (Cubuk et al. 2020).

    Args:
        frames: (B, T, H, W, 3) uint8.
        widths: of each of the B windows, in pixels; what lies to the right is padding.
        seeds: of each view; R of them for each window, one window's after another's.
        spec: number and magnitude of the operations.

    Returns:
        (B x R, T, H, W, 3) uint8.
    """
    repeats = len(seeds) // len(frames)
    operations = [draw_operations(seed, spec) for seed in seeds]
    return apply_operations(frames.repeat_interleave(repeats, 0), np.repeat(widths, repeats).tolist(), operations)


def apply_operations(frames: Tensor, widths: Sequence[int], operations: Sequence[Sequence[Operation]]) -> Tensor:
    """Apply to each view its operations, one after the other; nothing waits for the device.

    Args:
        frames: (B, T, H, W, 3) uint8.
        widths: of each view, in pixels; padding to the right of it repeats the edge, before and after.
        operations: of each view.

    Returns:
        (B, T, H, W, 3) uint8; in memory, the channels come before height and width.
    """
    planes = frames.permute(0, 1, 4, 2, 3).contiguous()
    for view, width, chain in zip(planes, widths, operations, strict=True):
        for part in view[..., :width].split(CPU_FRAMES if planes.device.type == "cpu" else len(view)):
            for name, argument in chain:
                part.copy_(OPERATIONS[name](part, argument))
        view[..., width:] = view[..., width - 1 : width]
    return planes.permute(0, 1, 3, 4, 2)


def _grey(frames: Tensor) -> Tensor:
    """(T, 1, H, W) int32."""
    red, green, blue = frames.int().split(1, 1)
    return (red * LUMA[0] + green * LUMA[1] + blue * LUMA[2] + 0x8000) >> 16


def _blend(one: Tensor, other: Tensor, factor: float) -> Tensor:
    """From one, at factor 0, to the other, at factor 1, and beyond; uint8, cut off as Pillow does."""
    return (one + factor * (other - one)).clamp_(0, 255).to(torch.uint8)


def _contrast(frames: Tensor, factor: float) -> Tensor:
    grey = _grey(frames)
    pixels = grey.shape[-2] * grey.shape[-1]
    return _blend((grey.sum((-2, -1), keepdim=True) * 2 + pixels) // (2 * pixels), frames.int(), factor)


def _sharpness(frames: Tensor, factor: float) -> Tensor:
    """Away from or towards a 3 x 3 mean with fivefold centre; the frame's edge stays."""
    sharp = frames.float()
    inner = sharp[..., 1:-1, 1:-1]
    rows = sharp[..., :-2, :] + sharp[..., 1:-1, :] + sharp[..., 2:, :]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner
    result = frames.clone()
    result[..., 1:-1, 1:-1] = _blend((total / 13 + 0.5).floor_(), inner, factor)
    return result


def _rotate(frames: Tensor, degrees: float) -> Tensor:
    """About the centre, counter-clockwise."""
    sin, cos = math.sin(-math.radians(degrees)), math.cos(math.radians(degrees))
    x, y = frames.shape[-1] / 2, frames.shape[-2] / 2
    return _warp(frames, (cos, sin, x - cos * x - sin * y), (-sin, cos, y + sin * x - cos * y))


def _cubic(positions: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The pixel before each position, and the weights of the one before it, of it and of the two after it.

    Pillow's kernel, Keys' with a = -1, where torch has -0.75.
    """
    before = positions.floor()
    d = positions - before
    e = 1 - d
    return before, [-d * e * e, 1 - 2 * d * d + d**3, 1 - 2 * e * e + e**3, -e * d * d]


def _warp(frames: Tensor, row_x: Sequence[float] = (1, 0, 0), row_y: Sequence[float] = (0, 1, 0)) -> Tensor:
    """Take each pixel from where an affine map of its place, in pixels, points to; by default that stays."""
    height, width = frames.shape[-2:]
    x = torch.arange(width, device=frames.device) + 0.5
    y = torch.arange(height, device=frames.device)[:, None] + 0.5
    x, y = (a * x + b * y + c for a, b, c in (row_x, row_y))
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    (left, weights_x), (top, weights_y) = _cubic(x - 0.5), _cubic(y - 0.5)
    # In grid_sample's measure, from -1 to 1.
    x, y = (2 * left + 1) / width - 1, (2 * top + 1) / height - 1
    flat = frames.flatten(0, 1).float()[None]
    total = torch.zeros_like(flat)
    # Along an axis that stays as it is, one pixel alone counts.
    for i in (0,) if row_x == (1, 0, 0) else (-1, 0, 1, 2):
        for j in (0,) if row_y == (0, 1, 0) else (-1, 0, 1, 2):
            grid = torch.stack([x + 2 * i / width, y + 2 * j / height], -1)[None]
            taken = F.grid_sample(flat, grid, mode="nearest", padding_mode="border", align_corners=False)
            total.addcmul_(taken, weights_x[i + 1] * weights_y[j + 1])
    # Pillow cuts off, but in double precision: whole numbers must not fall below themselves.
    result = total.add_(1e-3).clamp_(0, 255).to(torch.uint8)
    return torch.where(inside, result, FILL).view_as(frames)


OPERATIONS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "AutoContrast": lambda frames, _: v2.autocontrast(frames),
    "Equalize": lambda frames, _: v2.equalize(frames),
    "Invert": lambda frames, _: v2.invert(frames),
    "Rotate": _rotate,
    "PosterizeIncreasing": v2.posterize,
    "SolarizeIncreasing": lambda frames, threshold: torch.where(frames < threshold, frames, 255 - frames),
    "SolarizeAdd": lambda frames, more: torch.where(frames < 128, frames.clamp(max=255 - more) + more, frames),
    "ColorIncreasing": lambda frames, factor: _blend(_grey(frames), frames.int(), factor),
    "ContrastIncreasing": _contrast,
    "BrightnessIncreasing": v2.adjust_brightness,
    "SharpnessIncreasing": _sharpness,
    "ShearX": lambda frames, slope: _warp(frames, row_x=(1, slope, 0)),
    "ShearY": lambda frames, slope: _warp(frames, row_y=(slope, 1, 0)),
    "TranslateXRel": lambda frames, share: _warp(frames, row_x=(1, 0, share * frames.shape[-1])),
    "TranslateYRel": lambda frames, share: _warp(frames, row_y=(0, 1, share * frames.shape[-2])),
}
"""By name: frames (T, 3, H, W) uint8 and an argument to the same shape."""
