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
from avmae.models.tokens import Grid, grid_positions


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
        self.query, self.key_value, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, masked: Tensor, visible: Tensor) -> Tensor:
        """(B, M, dim) masked and (B, V, dim) visible tokens to (B, M, dim)."""
        key, value = self.key_value(self.visible_norm(visible)).unflatten(-1, (2, self.heads, -1)).unbind(2)
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


class SharedDecoder(nn.Module):
    """Blocks that decode the masked tokens of all modalities together, so that each is predicted from both.

    Args:
        blocks: `Transformer`, where all tokens attend to each other, or `CrossBlocks`, where masked ones attend to
            visible ones.
    """

    def __init__(self, blocks: Transformer | CrossBlocks) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(
        self, decoders: Mapping[str, Decoder], tokens: Mapping[str, Tensor], masks: Mapping[str, Mask]
    ) -> dict[str, Tensor]:
        """Predict the masked patches (B, M, P, C) of each modality from the fused tokens (B, V, encoder_dim) of all."""
        embedded = [decoder.embed(tokens[name], masks[name]) for name, decoder in decoders.items()]
        masked, visible = (torch.cat(parts, 1) for parts in zip(*embedded, strict=True))
        counts = [part.shape[1] for part, _ in embedded]
        decoded = attend(self.blocks, masked, visible).split(counts, 1)
        return {name: decoder.predict(part) for (name, decoder), part in zip(decoders.items(), decoded, strict=True)}
