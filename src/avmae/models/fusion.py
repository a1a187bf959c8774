"""How the modalities' encoded tokens look at each other: tokens of each modality in, the same shapes out.

Each fusion adds to its input through gates that start at zero, so a model that starts from video-only weights equals
the video-only model exactly at step 0, whatever the audio.
"""

import torch
import torch.nn.functional as F
from timm.layers import LayerScale, Mlp
from torch import Tensor, nn

Tokens = dict[str, Tensor]


class NoFusion(nn.Module):
    """Hands the tokens on, for systems of one modality."""

    def forward(self, tokens: Tokens) -> Tokens:
        """Tokens of each modality, (B, N_m, dim), to the same."""
        return tokens


class ConcatFusion(nn.Module):
    """Concatenates the mean token of the other modalities to every token and projects back: no attention between them.

    The paper's AV-MAE without attention.
    """

    def __init__(self, modalities: list[str], dim: int) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({name: nn.LayerNorm(dim, eps=1e-6) for name in modalities})
        self.projections = nn.ModuleDict({name: nn.Linear(len(modalities) * dim, dim) for name in modalities})
        self.gates = nn.ModuleDict({name: LayerScale(dim, init_values=0.0) for name in modalities})

    def forward(self, tokens: Tokens) -> Tokens:
        """Tokens of each modality, (B, N_m, dim), to the same."""
        normed = {name: self.norms[name](x) for name, x in tokens.items()}
        pooled = {name: x.mean(1, keepdim=True) for name, x in normed.items()}
        fused = {}
        for name, x in tokens.items():
            others = [mean.expand(-1, x.shape[1], -1) for other, mean in pooled.items() if other != name]
            fused[name] = x + self.gates[name](self.projections[name](torch.cat([normed[name], *others], -1)))
        return fused


class JointCrossAttention(nn.Module):
    """One layer: the tokens of each modality query the joint sequence of all, then pass an MLP of their own.

    The paper's joint cross-attention in the form of a pre-norm transformer layer. Keys and values of the joint sequence
    are computed once for all modalities.
    """

    def __init__(self, modalities: list[str], dim: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleDict({name: nn.LayerNorm(dim, eps=1e-6) for name in modalities})
        self.queries = nn.ModuleDict({name: nn.Linear(dim, dim) for name in modalities})
        self.key_value = nn.Linear(dim, 2 * dim)
        self.projections = nn.ModuleDict({name: nn.Linear(dim, dim) for name in modalities})
        self.attention_gates = nn.ModuleDict({name: LayerScale(dim, init_values=0.0) for name in modalities})
        self.mlp_norms = nn.ModuleDict({name: nn.LayerNorm(dim, eps=1e-6) for name in modalities})
        self.mlps = nn.ModuleDict({name: Mlp(dim, int(dim * mlp_ratio)) for name in modalities})
        self.mlp_gates = nn.ModuleDict({name: LayerScale(dim, init_values=0.0) for name in modalities})

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _project(self, tokens: Tokens) -> tuple[Tokens, Tensor, Tensor]:
        """Each modality's queries, and keys and values of the joint sequence, (B, heads, N, dim / heads)."""
        normed = {name: self.norms[name](x) for name, x in tokens.items()}
        key, value = self.key_value(torch.cat(list(normed.values()), 1)).chunk(2, -1)
        queries = {name: self._split(self.queries[name](x)) for name, x in normed.items()}
        return queries, self._split(key), self._split(value)

    def attention(self, tokens: Tokens) -> dict[str, Tokens]:
        """The weights that `forward` attends with, which its fused kernel does not hand out.

        Args:
            tokens: of each modality, (B, N_m, dim).

        Returns:
            By querying, then by attended modality, (B, heads, N_querying, N_attended); over all attended tokens of all
            modalities they sum to 1.
        """
        queries, key, _ = self._project(tokens)
        counts = [x.shape[1] for x in tokens.values()]
        weights = {}
        for name, query in queries.items():
            joint = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1)
            weights[name] = dict(zip(tokens, joint.split(counts, -1), strict=True))
        return weights

    def forward(self, tokens: Tokens) -> Tokens:
        """Tokens of each modality, (B, N_m, dim), to the same."""
        queries, key, value = self._project(tokens)
        fused = {}
        for name, x in tokens.items():
            attended = F.scaled_dot_product_attention(queries[name], key, value)
            x = x + self.attention_gates[name](self.projections[name](attended.transpose(1, 2).flatten(2)))
            fused[name] = x + self.mlp_gates[name](self.mlps[name](self.mlp_norms[name](x)))
        return fused
