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

    Raises:
        InputError: the patch does not divide the shape.
    """

    name: str
    channels: int
    shape: tuple[int, ...]
    patch: tuple[int, ...]
    stack: int = 1

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


def sincos_positions(tokens: int, dim: int, period: float = 10_000) -> Tensor:
    """Fixed sine-cosine table (tokens, dim) float32 over the token's number, as VideoMAE's.

    Column 2i is sin(n / period^(2i/dim)), column 2i + 1 the cosine of the same angle (Attention Is All You Need, 3.5).
    """
    number = torch.arange(tokens, dtype=torch.float64)[:, None]
    column = torch.arange(dim, dtype=torch.float64)
    angle = number / period ** (2 * (column // 2) / dim)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).float()


def grid_positions(size: tuple[int, ...], dim: int, kind: str = "flat") -> Tensor:
    """Fixed position table (tokens, dim) float32 of a grid of ``size`` tokens.

    `flat` numbers the tokens through, as VideoMAE does. `axes` gives every axis an equal share of the columns, as MAE
    does for images, and waves no longer than the axis needs: what is near in the image is near in the table, what
    is far is far, and small models learn faster.
    """
    if kind == "flat":
        return sincos_positions(math.prod(size), dim)
    share = dim // len(size) // 2 * 2
    tables = [sincos_positions(count, share, period=4 * max(size)) for count in size]
    places = torch.cartesian_prod(*(torch.arange(count) for count in size)).reshape(-1, len(size))
    columns = [table[places[:, axis]] for axis, table in enumerate(tables)]
    return F.pad(torch.cat(columns, 1), (0, dim - share * len(size)))


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
