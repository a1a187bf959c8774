"""Arrays to tokens and back, written once for a grid of any number of axes.

A stack of frames is a grid of three axes (time, height, width), a spectrogram one of two (time, frequency). Tokens
are numbered with the last axis running fastest, as in VideoMAE and MAE.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from avmae.errors import InputError

CLOCK_UNIT = 0.16
"""Seconds that the shortest wave of the `clock` code turns by one radian in: a spectrogram patch of AudioMAE's."""
PLACES = 16
"""The same for places, as a share of the frame or the band: a frame of 224 px has 14 patches along each side."""
CLOCK_PERIOD = 64.0
"""Between the shortest and the longest wave of the `clock` code: 10 s of audio are 64 patches."""


@dataclass(frozen=True)
class Grid:
    """How an array of shape (B, channels, *shape) is cut into tokens of ``patch``.

    Args:
        name: of the modality, for messages.
        channels: of the array.
        shape: of the array without batch and channels.
        patch: size of one token along each axis; (2, 16, 16) is VideoMAE's tubelet.
        stack: such arrays in a clip, one behind the other along the first axis, each a sample of its own (ImageMAE's
            frames). The batch axis of everything made of tokens then has B x stack rows.
        seconds: that the first axis lasts.

    Raises:
        InputError: the patch does not divide the shape.
    """

    name: str
    channels: int
    shape: tuple[int, ...]
    patch: tuple[int, ...]
    stack: int = 1
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.patch) or any(
            s % p or s < p for s, p in zip(self.shape, self.patch, strict=False)
        ):
            raise InputError(
                f"model: {self.name} of shape {'x'.join(map(str, self.shape))} cannot be cut into patches of "
                f"{'x'.join(map(str, self.patch))}; choose a patch that divides it, or change clip"
            )

    @property
    def size(self) -> tuple[int, ...]:
        """Tokens along each axis."""
        return tuple(s // p for s, p in zip(self.shape, self.patch, strict=True))

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return math.prod(self.size)

    @property
    def patch_dim(self) -> int:
        """Numbers in one token."""
        return math.prod(self.patch) * self.channels

    def patchify(self, array: Tensor) -> Tensor:
        """Cut (B, C, *shape) into (B, N, P, C): N tokens of P = prod(patch) elements, in VideoMAE's order.

        Raises:
            InputError: the array has another shape than the grid.
        """
        expected = (self.channels, self.stack * self.shape[0], *self.shape[1:])
        if tuple(array.shape[1:]) != expected:
            raise InputError(
                f"{self.name} has shape {tuple(array.shape)}, the model takes (B, {', '.join(map(str, expected))}); "
                "read it with the model's own clip settings"
            )
        axes = len(self.shape)
        cuts = (n for pair in zip(self.size, self.patch, strict=True) for n in pair)
        split = array.reshape(array.shape[0], self.channels, self.stack, *cuts)
        order = (0, 2, *range(3, 3 + 2 * axes, 2), *range(4, 4 + 2 * axes, 2), 1)
        return split.permute(order).reshape(-1, self.tokens, self.patch_dim // self.channels, self.channels)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Inverse of `patchify`: (B, N, P, C) to (B, C, *shape)."""
        axes = len(self.shape)
        split = patches.reshape(-1, self.stack, *self.size, *self.patch, self.channels)
        order = (0, 2 + 2 * axes, 1, *(i for a in range(axes) for i in (2 + a, 2 + axes + a)))
        return split.permute(order).reshape(-1, self.channels, self.stack * self.shape[0], *self.shape[1:])


def sincos_positions(places: Tensor, dim: int, period: float = 10_000) -> Tensor:
    """Fixed sine-cosine codes (N, dim) float32 of places (N,); of the numbers of tokens, VideoMAE's table.

    Column 2i is sin(n / period^(2i/dim)), column 2i + 1 the cosine of the same angle (Attention Is All You Need, 3.5).
    """
    column = torch.arange(dim, dtype=torch.float64)
    angle = places.double()[:, None] / period ** (2 * (column // 2) / dim)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).float()


def grid_positions(grid: Grid, dim: int, kind: str = "flat") -> Tensor:
    """Fixed position table (tokens, dim) float32 of a grid's tokens.

    | kind | what is coded |
    |---|---|
    | `flat` | the token's number, as VideoMAE does |
    | `axes` | the number along each axis, in an equal share of the columns, as MAE does for images, and by waves no \
longer than the axis needs: small models learn faster |
    | `clock` | seconds in the first half of the columns, the same for all modalities, so that an audio token finds \
the tubelets of its moment; the place within the frame, or the band, in the rest. Places are shares of the frame, so \
the code of a place is the same at any resolution and length |
    """
    if kind == "flat":
        return sincos_positions(torch.arange(grid.tokens), dim)
    numbers = [torch.arange(count) for count in grid.size]
    share = dim // len(numbers) // 2 * 2
    shares, periods = [share] * len(numbers), [4.0 * max(grid.size)] * len(numbers)
    if kind == "clock":
        centres = [(number + 0.5) / len(number) for number in numbers]
        numbers = [centres[0] * grid.seconds / CLOCK_UNIT, *(centre * PLACES for centre in centres[1:])]
        time = dim // 4 * 2
        shares = [time, *[(dim - time) // (len(numbers) - 1) // 2 * 2] * (len(numbers) - 1)]
        periods = [CLOCK_PERIOD] * len(numbers)
    tables = [sincos_positions(*axis) for axis in zip(numbers, shares, periods, strict=True)]
    cells = torch.cartesian_prod(*(torch.arange(count) for count in grid.size)).reshape(-1, len(tables))
    columns = torch.cat([table[cells[:, axis]] for axis, table in enumerate(tables)], 1)
    return F.pad(columns, (0, dim - columns.shape[1]))


def resample_positions(table: Tensor, size: tuple[int, ...], new_size: tuple[int, ...]) -> Tensor:
    """A position table (tokens, dim) of a grid of ``size`` tokens for one of ``new_size``: (new tokens, dim) float32.

    Every place has the mean of the codes around it in the old grid, linear along each axis, as learned tables of image
    models are resampled (Dosovitskiy et al. 2021, 3.2). `flat` codes of another grid would number other places.
    """
    cells = table.float().T.unflatten(1, size)[None]
    return F.interpolate(cells, new_size, mode="bilinear" if len(size) == 2 else "trilinear")[0].flatten(1).T


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Pick (B, K, ...) out of (B, N, ...) by index (B, K) int64."""
    expanded = index.reshape(*index.shape, *([1] * (tokens.dim() - 2))).expand(-1, -1, *tokens.shape[2:])
    return tokens.gather(1, expanded)


def scatter_tokens(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Put pairs of tokens (B, K, ...) and index (B, K), together covering all N places, back in order: (B, N, ...)."""
    tokens, index = torch.cat([t for t, _ in parts], 1), torch.cat([i for _, i in parts], 1)
    return gather_tokens(tokens, index.argsort(1))
