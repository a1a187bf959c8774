"""Tokens of each modality, encoded and fused: the part that pretraining leaves behind."""

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from avmae.models.fusion import JointCrossAttention
from avmae.models.tokens import Grid, gather_tokens, grid_positions


class PartialBlock(Block):
    """timm's pre-norm block without a key bias, as VideoMAE, and able to leave out outputs that nothing reads.

    A key bias adds the same to all of a query's logits, so softmax does not see it: its gradient is rounding noise,
    which AdamW would scale up to steps of full size.
    """

    def __init__(self, dim: int, heads: int, drop_path: float = 0.0, norm_eps: float = 1e-6) -> None:
        norm = partial(LayerNorm, eps=norm_eps)
        super().__init__(dim=dim, num_heads=heads, qkv_bias=False, drop_path=drop_path, norm_layer=norm)
        self.attn.q_bias = nn.Parameter(torch.zeros(dim))
        self.attn.v_bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, skip: int = 0) -> Tensor:
        """(B, N, dim) to (B, N - skip, dim): the first ``skip`` tokens are attended to, but not carried on."""
        bias = torch.cat([self.attn.q_bias, torch.zeros_like(self.attn.q_bias), self.attn.v_bias])
        qkv = F.linear(self.norm1(x), self.attn.qkv.weight, bias).unflatten(-1, (3, self.attn.num_heads, -1))
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
        attended = F.scaled_dot_product_attention(query[:, :, skip:], key, value)
        x = x[:, skip:] + self.drop_path1(self.attn.proj(attended.transpose(1, 2).flatten(2)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class Transformer(nn.Sequential):
    """A stack of timm's pre-norm blocks, the drop path rate rising linearly to ``drop_path`` (VideoMAE, MAE, DeiT)."""

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        drop_path: float = 0.0,
        checkpointing: bool = False,
        norm_eps: float = 1e-6,
    ) -> None:
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        super().__init__(*(PartialBlock(dim, heads, rate, norm_eps) for rate in rates))
        self.checkpointing = checkpointing

    def forward(self, x: Tensor, skip: int = 0) -> Tensor:
        """(B, N, dim) to (B, N - skip, dim), without the first ``skip`` tokens, whose outputs nothing reads."""
        for number, block in enumerate(self, start=1):
            unread = skip if number == len(self) else 0
            if self.checkpointing and self.training:
                x = checkpoint(block, x, unread, use_reentrant=False)
            else:
                x = block(x, unread)
        return x


class ModalityEncoder(nn.Module):
    """One modality's patches to encoded tokens.

    Args:
        grid: how the modality is cut.
        dim: of the tokens.
        depth: blocks.
        heads: of each block.
        drop_path: rate of the last block.
        may_be_absent: clips may lack this modality; their tokens are one learned token instead.
        checkpointing: recompute activations in the backward pass to save memory.
        positions: see `grid_positions`.
        norm_eps: of the blocks' norms.
    """

    positions: Tensor

    def __init__(
        self,
        grid: Grid,
        dim: int,
        depth: int,
        heads: int,
        drop_path: float = 0.0,
        may_be_absent: bool = False,
        checkpointing: bool = False,
        positions: str = "flat",
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.grid, self.heads, self.positions_kind = grid, heads, positions
        self.embed = nn.Linear(grid.patch_dim, dim)
        self.absent = nn.Parameter(torch.zeros(dim)) if may_be_absent else None
        # Kept in checkpoints: where the weights came from an image model or another grid, so did the positions.
        self.register_buffer("positions", grid_positions(grid, dim, positions))
        self.blocks = Transformer(dim, depth, heads, drop_path, checkpointing, norm_eps)

    def forward(self, patches: Tensor, visible: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """Encode the tokens that can be seen.

        Args:
            patches: (B, V, P, C), of the visible tokens only.
            visible: (B, V) int64, their numbers; None where all N are visible, in order.
            present: (B,) bool, whether the clip has this modality at all; None if all have. Read if one may lack it.

        Returns:
            (B, V, dim).
        """
        tokens = self.embed(patches.flatten(2))
        if self.absent is not None:
            # Where no clip lacks it, too: DDP wants a gradient of every parameter.
            present = tokens.new_ones(len(tokens), dtype=torch.bool) if present is None else present
            tokens = torch.where(present[:, None, None], tokens, self.absent.to(tokens.dtype))
        positions = self.positions if visible is None else self.positions[visible]
        return self.blocks(tokens + positions)


class Encoder(nn.Module):
    """The modalities' encoders and their fusion.

    Args:
        modalities: encoder of each modality by name; all of the same dim.
        fusion: see `avmae.models.fusion`.
        dim: of the tokens.
    """

    def __init__(self, modalities: Mapping[str, ModalityEncoder], fusion: nn.Module, dim: int) -> None:
        super().__init__()
        self.modalities = cast(dict[str, ModalityEncoder], nn.ModuleDict(modalities))
        self.fusion = fusion
        self.dim = dim

    def patchify(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Cut each modality of a batch, (B, C, *shape), into (B, N, P, C); others are not read."""
        return {name: encoder.grid.patchify(batch[name]) for name, encoder in self.modalities.items()}

    def encode_apart(
        self,
        patches: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        visible: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Encode each modality by itself.

        Args:
            patches: by modality (B, N, P, C).
            present: by modality (B,) bool, whether a clip has it; what lacks is present everywhere.
            visible: by modality (B, V) int64, the tokens that can be seen; None for all.

        Returns:
            By modality (B, V, dim), not normalised.
        """
        encoded = {}
        for name, encoder in self.modalities.items():
            index = None if visible is None else visible[name]
            seen = patches[name] if index is None else gather_tokens(patches[name], index)
            encoded[name] = encoder(seen, index, present.get(name))
        return encoded

    def forward(
        self,
        patches: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        visible: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Encode and fuse; takes and returns what `encode_apart` does."""
        return self.fusion(self.encode_apart(patches, present, visible))

    def cross_attention(
        self,
        patches: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        visible: Mapping[str, Tensor] | None = None,
    ) -> dict[str, dict[str, Tensor]] | None:
        """What the modalities attend to in the last layer of the fusion; takes what `encode_apart` does.

        Returns:
            See `JointCrossAttention.attention`; None where the fusion is another.
        """
        if not isinstance(self.fusion, nn.Sequential):
            return None
        *earlier, last = self.fusion
        tokens = self.encode_apart(patches, present, visible)
        for layer in earlier:
            tokens = layer(tokens)
        return cast(JointCrossAttention, last).attention(tokens)

    def pool(self, tokens: Mapping[str, Tensor], clips: int) -> dict[str, Tensor]:
        """Mean token of each modality, (clips, dim), over all frames where these are encoded apart."""
        return {name: x.reshape(clips, -1, self.dim).mean(1) for name, x in tokens.items()}
