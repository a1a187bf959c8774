"""Weights made for another grid, or for inputs normalised otherwise, fitted to a network."""

import math
from collections.abc import Mapping

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from avmae.clip import ClipSpec
from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.classifier import Classifier
from avmae.models.tokens import Grid, grid_positions, resample_positions, sincos_positions

Network = MaskedAutoencoder | Classifier

TIME_SHARE = 0.1
"""Of the time code that is added to an image model's positions: enough to tell frames apart, while tokens stay close to
what the model has learned to read."""
AUDIOMAE_BANDS = 8
"""Of AudioMAE's tokens: 128 mel bins in patches of 16."""


def fit(name: str, value: Tensor, network: Network) -> Tensor:
    """A foreign kernel or position table for the grid of its modality; anything else as it is."""
    for modality, encoder in network.encoder.modalities.items():
        if name == f"encoder.modalities.{modality}.embed.weight" and value.dim() > 2:
            return _fit_kernel(value, encoder.grid.patch)
        if name == f"encoder.modalities.{modality}.positions" and value.dim() == 3:
            return _fit_positions(value, encoder.grid)
    return value


def interpolated_positions(
    weights: Mapping[str, Tensor], kind: str, grids: Mapping[str, Grid], network: Network
) -> dict[str, Tensor]:
    """Tables of positions, by name, of the grids that weights were trained on, for those of a network that differ.

    A table that the weights lack is the one that was computed for their grid. A shorter clip takes the first rows in
    time, which it had in training; all else is interpolated. `clock` codes seconds and shares of the frame, so the
    network's own table is right.

    Args:
        weights: of a checkpoint.
        kind: of their positions; see `grid_positions`.
        grids: by modality, that they were trained on.
        network: that is to get them.
    """
    own = network.state_dict()
    if kind == "clock":
        return {name: own[name] for name in weights if name.endswith(".positions") and name in own}
    tables: dict[str, Tensor] = {}
    for modality, encoder in network.encoder.modalities.items():
        old, new = grids.get(modality), encoder.grid
        # An image's table has no time to interpolate.
        if old is None or old.size == new.size or old.size[0] == 1 < new.size[0]:
            continue
        rows = min(old.size[0], new.size[0])
        encoded, decoded = f"encoder.modalities.{modality}", f"decoders.{modality}"
        for stem, first in ((encoded, f"{encoded}.embed.weight"), (decoded, f"{decoded}.project.weight")):
            name = f"{stem}.positions"
            # Image and spectrogram models, whose kernels have four axes, bring tables of their own.
            if name not in own or first not in weights or weights[first].dim() == 4:
                continue
            table = weights.get(name)
            if table is None:
                table = grid_positions(old, weights[first].shape[0], kind)
            begin = table.unflatten(0, old.size)[:rows].flatten(0, len(old.size) - 1)
            tables[name] = resample_positions(begin, (rows, *old.size[1:]), new.size)
    return tables


def renormalized(weights: Mapping[str, Tensor], trained: ClipSpec, network: Network) -> dict[str, Tensor]:
    """First and last layers, by name, that compute from a network's inputs what weights did from theirs.

    Pixels and log-mel power are normalised by the mean and the standard deviation of a `ClipSpec`; the affine
    difference of two becomes part of the patch embedding, and of a head that predicts plain values.

    Args:
        weights: fitted to the grid of the network.
        trained: the normalisation they were trained with.
        network: that is to get them.
    """
    changed: dict[str, Tensor] = {}
    for modality in network.encoder.modalities:
        (mean, std), (own_mean, own_std) = (_statistics(clip, modality) for clip in (trained, network.clip))
        if torch.equal(mean, own_mean) and torch.equal(std, own_std):
            continue
        names = [f"encoder.modalities.{modality}.embed.{part}" for part in ("weight", "bias")]
        if all(name in weights for name in names):
            weight, bias = (weights[name] for name in names)
            kernel = weight.double().unflatten(1, (-1, len(mean)))
            shift = (kernel @ ((own_mean - mean) / std)).sum(1)
            values = (kernel * (own_std / std)).flatten(1), bias.double() + shift
            changed |= {name: value.to(weight.dtype) for name, value in zip(names, values, strict=True)}
        names = [f"decoders.{modality}.head.{part}" for part in ("weight", "bias")]
        plain = isinstance(network, MaskedAutoencoder) and not network.normalize_target
        if plain and all(name in weights for name in names):
            weight, bias = (weights[name] for name in names)
            count = len(bias) // len(mean)
            scale, shift = (std / own_std).repeat(count), ((mean - own_mean) / own_std).repeat(count)
            values = weight.double() * scale[:, None], bias.double() * scale + shift
            changed |= {name: value.to(weight.dtype) for name, value in zip(names, values, strict=True)}
    return changed


def _statistics(clip: ClipSpec, modality: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation by channel, float64."""
    mean, std = (clip.pixel_mean, clip.pixel_std) if modality == "video" else ((clip.mel_mean,), (clip.mel_std,))
    return torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)


def _fit_kernel(kernel: Tensor, patch: tuple[int, ...]) -> Tensor:
    """A convolution's kernel (dim, C, *patch) as rows (dim, P x C), in which channels run fastest."""
    if kernel.dim() - 2 < len(patch):
        kernel = kernel.unsqueeze(2).repeat_interleave(patch[0], 2) / patch[0]
    return kernel.movedim(1, -1).flatten(1)


def _fit_positions(table: Tensor, grid: Grid) -> Tensor:
    """An image or spectrogram model's positions (1, N or 1 + N, dim), a class token's first, for a grid of ours."""
    count, height = table.shape[1], grid.size[-2]
    if len(grid.size) == 2:
        # A spectrogram, of more or less time. Tokens are 160 ms apart in both, so the first rows fit.
        rows, width = count // AUDIOMAE_BANDS, AUDIOMAE_BANDS
        table = table[:, count - rows * width :][:, : height * width]
        rows = min(rows, height)
    else:
        rows = width = math.isqrt(count)
        table = table[:, count - rows * width :]
    table = resample_abs_pos_embed(table, list(grid.size[-2:]), [rows, width], num_prefix_tokens=0)[0]
    if len(grid.size) == 2 or grid.size[0] == 1:
        return table
    time = TIME_SHARE * sincos_positions(torch.arange(grid.size[0]), table.shape[1])
    return (table[None] + time[:, None]).flatten(0, 1)
