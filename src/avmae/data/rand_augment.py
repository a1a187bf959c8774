"""VideoMAE's RandAugment for the frames of many views at once: `rand-m7-n4-mstd0.5-inc1` of timm, on the device.

Operations, their names, and how magnitudes become arguments are timm's (`timm.data.auto_augment`); the pixels are
Pillow's within rounding. As in VideoMAE, all frames of a view get the same operations, which see whole frames, before
any box is cut; what an operation measures (extremes, histogram, mean) it measures in each frame; geometric operations
interpolate bicubically and fill with grey. A frame that lies on its side gets the same distribution of operations, for
each along one axis is as likely as its like along the other, and either sign as the other.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from avmae.data.augment import AugmentSpec

PROBABILITY = 0.5
"""Of applying an operation that was drawn."""

FILL = 128
"""Value, in all channels, of what a geometric operation moves in from outside the frame."""

CPU_FRAMES = 4
"""Frames that a CPU works on at once."""

LUMA = (19595, 38470, 7471)
"""Red's, green's and blue's share of grey, in 65536ths, as Pillow takes them (ITU-R 601-2)."""


class Operation(NamedTuple):
    """One operation of a view.

    Args:
        name: one of `ARGUMENTS`.
        argument: degrees, share of a side, slope, factor, bits, threshold or summand; 0 where there is none.
    """

    name: str
    argument: float = 0.0


ARGUMENTS: dict[str, Callable[[float, int], float]] = {
    "AutoContrast": lambda level, sign: 0.0,
    "Equalize": lambda level, sign: 0.0,
    "Invert": lambda level, sign: 0.0,
    "Rotate": lambda level, sign: sign * level * 30,
    "PosterizeIncreasing": lambda level, sign: 4 - int(level * 4),
    "SolarizeIncreasing": lambda level, sign: 256 - int(level * 256),
    "SolarizeAdd": lambda level, sign: int(level * 110),
    "ColorIncreasing": lambda level, sign: 1 + sign * level * 0.9,
    "ContrastIncreasing": lambda level, sign: 1 + sign * level * 0.9,
    "BrightnessIncreasing": lambda level, sign: 1 + sign * level * 0.9,
    "SharpnessIncreasing": lambda level, sign: 1 + sign * level * 0.9,
    "ShearX": lambda level, sign: sign * level * 0.3,
    "ShearY": lambda level, sign: sign * level * 0.3,
    "TranslateXRel": lambda level, sign: sign * level * 0.45,
    "TranslateYRel": lambda level, sign: sign * level * 0.45,
}
"""By operation: its argument at a level from 0 to 1 and a sign, 1 or -1."""


def draw_operations(seed: int, spec: AugmentSpec) -> list[Operation]:
    """The operations that are applied to a view, in order: of those drawn about half.

    Args:
        seed: of the view.
        spec: how many are drawn, and their magnitude.
    """
    rng = np.random.default_rng(seed)
    names, operations = list(ARGUMENTS), []
    for index in rng.integers(len(names), size=spec.rand_operations):
        applied, magnitude, sign = (
            rng.random() < PROBABILITY,
            rng.normal(spec.rand_magnitude, spec.rand_std),
            rng.random(),
        )
        if applied:
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
    """Apply to each view its operations, one after the other; alike ones of several views at once.

    Nothing waits for the device, and all that it has to be told is copied to it at once.

    Args:
        frames: (B, T, H, W, 3) uint8.
        widths: of each view, in pixels; padding to the right of it repeats the edge, before and after.
        operations: of each view.

    Returns:
        (B, T, H, W, 3) uint8; in memory, the channels come before height and width.
    """
    planes = frames.permute(0, 1, 4, 2, 3).contiguous()
    height, widest = planes.shape[-2:]
    groups: dict[tuple[int, str, int], list[tuple[int, NDArray[np.floating]]]] = defaultdict(list)
    for view, (chain, width) in enumerate(zip(operations, widths, strict=True)):
        for turn, operation in enumerate(chain):
            kind, numbers = _kernel(operation, height, width)
            groups[turn, kind, width].append((view, numbers))
    if not groups:
        return frames
    keys = sorted(groups)
    packed = [np.concatenate([[view for view, _ in groups[key]], *(n for _, n in groups[key])]) for key in keys]
    # In float32, views and all numbers but fractions are exact.
    sent = torch.from_numpy(np.concatenate(packed).astype(np.float32)).to(frames.device, non_blocking=True)
    for key, part in zip(keys, sent.split([len(p) for p in packed]), strict=True):
        (_, kind, width), count = key, len(groups[key])
        _apply(KERNELS[kind], planes[..., :width], part[:count].long(), part[count:].view(count, -1))
    for view, width in enumerate(widths):
        if width < widest:
            planes[view, ..., width:] = planes[view, ..., width - 1 : width]
    return planes.permute(0, 1, 3, 4, 2)


def _apply(kernel: Callable[[Tensor, Tensor], Tensor], planes: Tensor, views: Tensor, numbers: Tensor) -> None:
    """Apply a kernel to some views of all planes, in place: at once, or on a CPU in pieces that its cache holds."""
    if planes.device.type != "cpu":
        planes.index_copy_(0, views, kernel(planes.index_select(0, views), numbers))
        return
    for view, row in zip(views.tolist(), numbers.split(1), strict=True):
        for frames in planes[view : view + 1].split(CPU_FRAMES, 1):
            frames.copy_(kernel(frames, row))


def _kernel(operation: Operation, height: int, width: int) -> tuple[str, NDArray[np.floating]]:
    """Name in `KERNELS` of what applies an operation, and the numbers that it takes for a view."""
    name, argument = operation
    values = np.arange(256)
    if name == "Invert":
        return "table", 255.0 - values
    if name == "PosterizeIncreasing":
        return "table", (values & -(1 << (8 - int(argument)))).astype(float)
    if name == "SolarizeIncreasing":
        return "table", np.where(values < argument, values, 255.0 - values)
    if name == "SolarizeAdd":
        return "table", np.where(values < 128, np.minimum(values + argument, 255.0), values)
    if name == "BrightnessIncreasing":
        return "table", np.floor(np.minimum(values * np.float32(argument), np.float32(255)))
    if name == "ShearX":
        return "warp_x", np.array([1, argument, 0, 0, 1, 0])
    if name == "TranslateXRel":
        return "warp_x", np.array([1, 0, argument * width, 0, 1, 0])
    if name == "ShearY":
        return "warp_y", np.array([1, 0, 0, argument, 1, 0])
    if name == "TranslateYRel":
        return "warp_y", np.array([1, 0, 0, 0, 1, argument * height])
    if name == "Rotate":
        # About the centre, in degrees counter-clockwise.
        sin, cos = math.sin(-math.radians(argument)), math.cos(math.radians(argument))
        x, y = width / 2, height / 2
        return "warp", np.array([cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y])
    return name, np.array([argument])


def _look_up(planes: Tensor, tables: Tensor) -> Tensor:
    """Replace values by those of tables.

    Args:
        planes: (V, T, 3, H, W) uint8.
        tables: (V, T or 1, 3 or 1, 256) of any dtype.
    """
    shape = tables.shape[:3]
    offset = torch.arange(shape.numel(), dtype=torch.int32, device=planes.device).view(*shape, 1, 1) * 256
    return tables.to(torch.uint8).flatten().index_select(0, (planes.int() + offset).flatten()).view_as(planes)


def _autocontrast(planes: Tensor, _: Tensor) -> Tensor:
    low, high = (extreme[..., None].long() for extreme in (planes.amin((-2, -1)), planes.amax((-2, -1))))
    values = torch.arange(256, device=planes.device)
    stretched = ((values - low) * 255 // (high - low).clamp(min=1)).clamp(0, 255)
    return _look_up(planes, torch.where(high > low, stretched, values))


def _grey(planes: Tensor) -> Tensor:
    """(V, T, 1, H, W) int32."""
    red, green, blue = planes.int().split(1, 2)
    return (red * LUMA[0] + green * LUMA[1] + blue * LUMA[2] + 0x8000) >> 16


def _blend(one: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """From one, at factor 0, to the other, at factor 1, and beyond; uint8, cut off as Pillow does."""
    return (one + factor[:, :, None, None, None] * (other - one)).clamp_(0, 255).to(torch.uint8)


def _contrast(planes: Tensor, factor: Tensor) -> Tensor:
    grey = _grey(planes)
    pixels = grey.shape[-2] * grey.shape[-1]
    mean = (grey.sum((-2, -1), keepdim=True) * 2 + pixels) // (2 * pixels)
    return _look_up(planes, _blend(mean, torch.arange(256, device=planes.device), factor)[..., 0, :])


def _color(planes: Tensor, factor: Tensor) -> Tensor:
    return _blend(_grey(planes), planes.int(), factor)


def _sharpness(planes: Tensor, factor: Tensor) -> Tensor:
    """Away from or towards a 3 x 3 mean with fivefold centre; the frame's edge stays."""
    sharp = planes.float()
    inner = sharp[..., 1:-1, 1:-1]
    rows = sharp[..., :-2, :] + sharp[..., 1:-1, :] + sharp[..., 2:, :]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner
    result = planes.clone()
    result[..., 1:-1, 1:-1] = _blend((total / 13 + 0.5).floor_(), inner, factor)
    return result


def _cubic(positions: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The pixel before each position, and the weights of it, the one before it and the two after it.

    Pillow's kernel, Keys' with a = -1, where torch has -0.75.
    """
    before = positions.floor()
    d = positions - before
    e = 1 - d
    return before, [-d * e * e, 1 - 2 * d * d + d**3, 1 - 2 * e * e + e**3, -e * d * d]


ALL_TAPS, ONE_TAP = (-1, 0, 1, 2), (0,)


def _warp(
    planes: Tensor, matrices: Tensor, taps_x: Iterable[int] = ALL_TAPS, taps_y: Iterable[int] = ALL_TAPS
) -> Tensor:
    """Take each pixel from where an affine map of its place points to.

    Args:
        planes: (V, T, 3, H, W) uint8.
        matrices: (V, 6), first the row for x, then that for y, in pixels.
        taps_x: of the pixels that a row is interpolated from, those that count; only 0 where x does not change.
        taps_y: the same of a column.
    """
    height, width = planes.shape[-2:]
    a, b, c, d, e, f = matrices[:, :, None, None].unbind(1)
    x = torch.arange(width, device=planes.device) + 0.5
    y = torch.arange(height, device=planes.device)[:, None] + 0.5
    x, y = a * x + b * y + c, d * x + e * y + f
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    (left, weights_x), (top, weights_y) = _cubic(x - 0.5), _cubic(y - 0.5)
    # In grid_sample's measure, from -1 to 1.
    x, y = (2 * left + 1) / width - 1, (2 * top + 1) / height - 1
    flat = planes.flatten(1, 2).float()
    total = torch.zeros_like(flat)
    for i in taps_x:
        for j in taps_y:
            grid = torch.stack([x + 2 * i / width, y + 2 * j / height], -1)
            taken = F.grid_sample(flat, grid, mode="nearest", padding_mode="border", align_corners=False)
            total.addcmul_(taken, (weights_x[i + 1] * weights_y[j + 1])[:, None])
    # Pillow cuts off, but in double precision: whole numbers must not fall below themselves.
    result = total.add_(1e-3).clamp_(0, 255).to(torch.uint8)
    return torch.where(inside[:, None], result, FILL).view_as(planes)


KERNELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "table": lambda planes, numbers: _look_up(planes, numbers[:, None, None]),
    "AutoContrast": _autocontrast,
    "Equalize": lambda planes, _: v2.equalize(planes),
    "ContrastIncreasing": _contrast,
    "ColorIncreasing": _color,
    "SharpnessIncreasing": _sharpness,
    "warp": _warp,
    "warp_x": lambda planes, matrices: _warp(planes, matrices, taps_y=ONE_TAP),
    "warp_y": lambda planes, matrices: _warp(planes, matrices, taps_x=ONE_TAP),
}
"""(V, T, 3, H, W) uint8 of views that drew the same and (V, K) float32 of what they drew to the same shape."""
