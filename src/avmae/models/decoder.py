"""Masked patches predicted from visible tokens: those of one modality, or of all."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from avmae.models.encoder import Transformer
from avmae.models.masking import Mask
from avmae.models.tokens import Grid, gather_tokens, grid_positions


class CrossBlock(nn.Module):
    """Each masked token queries the visible ones, and no other masked one, then passes an MLP (CrossMAE, 3.2).

    Args:
        dim: of the tokens.
        heads: of the attention.
        norm_eps: of the norms.
    """

    def __init__(self, dim: int, heads: int, norm_eps: float = 1e-6) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, dim, eps=norm_eps)
        self.heads = heads
        self.norm1, self.norm2, self.visible_norm = norm(), norm(), norm()
        self.query, self.proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        # Keys have no bias, for the reason that `PartialBlock` gives.
        self.key_value, self.value_bias = nn.Linear(dim, 2 * dim, bias=False), nn.Parameter(torch.zeros(dim))
        self.mlp = Mlp(dim, 4 * dim)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Earlier versions had the bias of keys, too, which changes nothing.
        if (bias := state_dict.pop(f"{prefix}key_value.bias", None)) is not None:
            state_dict[f"{prefix}value_bias"] = bias[len(bias) // 2 :]
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, masked: Tensor, visible: Tensor) -> Tensor:
        """(B, M, dim) masked and (B, V, dim) visible tokens to (B, M, dim)."""
        bias = torch.cat([torch.zeros_like(self.value_bias), self.value_bias])
        both = F.linear(self.visible_norm(visible), self.key_value.weight, bias)
        key, value = both.unflatten(-1, (2, self.heads, -1)).unbind(2)
        query = self.query(self.norm1(masked)).unflatten(-1, (self.heads, -1))
        attended = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))
        masked = masked + self.proj(attended.transpose(1, 2).flatten(2))
        return masked + self.mlp(self.norm2(masked))


class CrossBlocks(nn.ModuleList):
    """A stack of `CrossBlock`; what is predicted of a token does not depend on which others are decoded."""

    def forward(self, masked: Tensor, visible: Tensor) -> Tensor:
        """(B, M, dim) masked and (B, V, dim) visible tokens to (B, M, dim)."""
        for block in self:
            masked = block(masked, visible)
        return masked


def attend(blocks: Transformer | CrossBlocks, masked: Tensor, visible: Tensor) -> Tensor:
    """Masked tokens (B, M, dim) after blocks that also see the visible ones (B, V, dim)."""
    if isinstance(blocks, CrossBlocks):
        return blocks(masked, visible)
    return blocks(torch.cat([visible, masked], 1), skip=visible.shape[1])


class Decoder(nn.Module):
    """Predicts the masked patches of one modality from its fused visible tokens (VideoMAE section 3.4).

    Args:
        grid: how the modality is cut.
        encoder_dim: of the fused tokens.
        dim: of the decoder's tokens.
        blocks: of attention among them; None where the modalities share theirs (`SharedDecoder`).
        positions: see `grid_positions`.
        norm_eps: of the norm before the blocks.
        last_norm_eps: of the norm before the head.
    """

    positions: Tensor

    def __init__(
        self,
        grid: Grid,
        encoder_dim: int,
        dim: int,
        blocks: Transformer | None,
        positions: str = "flat",
        norm_eps: float = 1e-6,
        last_norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.encoder_norm = nn.LayerNorm(encoder_dim, eps=norm_eps)
        self.project = nn.Linear(encoder_dim, dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        # Kept in checkpoints: weights that were trained on another grid bring its table, interpolated.
        self.register_buffer("positions", grid_positions(grid, dim, positions))
        self.blocks = blocks
        self.norm = nn.LayerNorm(dim, eps=last_norm_eps)
        self.head = nn.Linear(dim, grid.patch_dim)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Earlier versions did not keep the table, which was the computed one.
        state_dict.setdefault(f"{prefix}positions", self.positions)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def embed(self, tokens: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
        """Fused tokens (B, V, encoder_dim) to masked (B, M, dim) and visible (B, V, dim) tokens with positions."""
        visible = self.project(self.encoder_norm(tokens)) + self.positions[mask.visible]
        return (self.mask_token + self.positions[mask.masked]).to(visible.dtype), visible

    def predict(self, decoded: Tensor) -> Tensor:
        """Decoded tokens (B, M, dim) to patches (B, M, P, C)."""
        return self.head(self.norm(decoded)).unflatten(-1, (-1, self.grid.channels))

    def forward(self, tokens: Tensor, mask: Mask) -> Tensor:
        """Predict from (B, V, encoder_dim) the masked patches (B, M, P, C)."""
        assert self.blocks is not None
        return self.predict(attend(self.blocks, *self.embed(tokens, mask)))


class Moment(nn.Module):
    """What one modality shows around the moment of each token of another: a depthwise convolution over its tokens.

    Attention has to learn which tokens belong together before it can use any; here those of the same time are taken
    from the first step. A masked token counts as zero.

    Args:
        own: grid of the tokens that look.
        other: grid of the tokens that are looked at.
        dim: of the tokens.
    """

    near: Tensor

    def __init__(self, own: Grid, other: Grid, dim: int) -> None:
        super().__init__()
        self.own, self.other = own, other
        times, others = own.size[0], other.size[0]
        # As many of the other's times as begin within one of ours, so many before, and so many after.
        reach = 3 * max(1, round(others / times))
        first = ((torch.arange(times) + 0.5) * others / times - reach / 2).round().long()
        near = first[:, None] + torch.arange(reach)
        # Beyond both ends, the number of a time that is always zero.
        near = near.where((near >= 0) & (near < others), others) * reach + torch.arange(reach)
        self.register_buffer("near", near, persistent=False)
        self.project = nn.Linear(dim, dim)
        places = other.tokens // others
        self.weights = nn.Parameter(torch.full((reach, places, dim), 1 / (reach * places)))

    def forward(self, looking: Mask, tokens: Tensor, mask: Mask) -> Tensor:
        """For the masked tokens of `looking` (B, M), from visible tokens (B, V, dim) under their mask: (B, M, dim)."""
        shown, index = self.project(tokens), mask.visible[..., None].expand(-1, -1, tokens.shape[-1])
        whole = shown.new_zeros(len(shown), self.other.tokens, shown.shape[-1]).scatter(1, index, shown)
        by_time = whole.unflatten(1, (self.other.size[0], -1))
        weighted = torch.einsum("btpc,rpc->btrc", by_time, self.weights.to(whole.dtype))
        moments = F.pad(weighted, (0, 0, 0, 0, 0, 1)).flatten(1, 2)[:, self.near].sum(2)
        return gather_tokens(moments, looking.masked // (self.own.tokens // self.own.size[0]))


class SharedDecoder(nn.Module):
    """Blocks that decode the masked tokens of all modalities together, so that each is predicted from both.

    Args:
        blocks: `Transformer`, where all tokens attend to each other, or `CrossBlocks`, where masked ones attend to
            visible ones.
        moments: by modality the `Moment` that its masked tokens start from; none where they only have their mask token.
    """

    def __init__(self, blocks: Transformer | CrossBlocks, moments: Mapping[str, Moment] | None = None) -> None:
        super().__init__()
        self.blocks = blocks
        self.moments = nn.ModuleDict(moments or {})

    def forward(
        self, decoders: Mapping[str, Decoder], tokens: Mapping[str, Tensor], masks: Mapping[str, Mask]
    ) -> dict[str, Tensor]:
        """Predict the masked patches (B, M, P, C) of each modality from the fused tokens (B, V, encoder_dim) of all."""
        masked, visible = {}, {}
        for name, decoder in decoders.items():
            masked[name], visible[name] = decoder.embed(tokens[name], masks[name])
        for name, moment in self.moments.items():
            (other,) = visible.keys() - {name}
            masked[name] = masked[name] + moment(masks[name], visible[other], masks[other])
        counts = [part.shape[1] for part in masked.values()]
        together = [torch.cat(list(parts.values()), 1) for parts in (masked, visible)]
        decoded = attend(self.blocks, *together).split(counts, 1)
        return {name: decoder.predict(part) for (name, decoder), part in zip(decoders.items(), decoded, strict=True)}
