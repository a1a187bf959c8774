"""The encoder with a linear head for each modality's mean token."""

from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from avmae.clip import ClipSpec
from avmae.models.autoencoder import encode
from avmae.models.encoder import Encoder


class Classifier(nn.Module):
    """Classifies clips; nothing is masked.

    The logits are a sum over modalities of normalise(mean token) times weights, that is, one linear layer on the
    concatenated means. All but the video's weights start at zero, so a classifier that starts from video-only
    weights equals it at step 0.

    Args:
        encoder: shared with the autoencoder.
        classes: number of classes.
        dropout: before the head (VideoMAE fine-tunes UCF101 with 0.5).
        pool: `mean`, or `attention` of one learned query (as V-JEPA's attentive probe).
        heads: of that attention.
        frozen: leave the encoder as it is and train what follows it.
        norm_eps: of the norm before the head.
    """

    clip: ClipSpec
    """What windows it takes, set by `avmae.models.build`."""
    many_labels: bool = False
    """Whether a clip may be of several classes, each with a probability of its own; set there, too."""

    def __init__(
        self,
        encoder: Encoder,
        classes: int,
        dropout: float = 0.0,
        pool: str = "mean",
        heads: int = 1,
        frozen: bool = False,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(not frozen)
        self.classes, self.frozen = classes, frozen
        attended = encoder.modalities if pool == "attention" else []
        self.poolings = nn.ModuleDict({n: AttentionPoolLatent(encoder.dim, num_heads=heads) for n in attended})
        self.norms = nn.ModuleDict({name: nn.LayerNorm(encoder.dim, eps=norm_eps) for name in encoder.modalities})
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict({name: nn.Linear(encoder.dim, classes) for name in encoder.modalities})
        for module in self.encoder.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for name, head in self.heads.items():
            assert isinstance(head, nn.Linear)
            nn.init.zeros_(head.bias)
            # Official VideoMAE scales its freshly drawn head by 0.001.
            nn.init.trunc_normal_(head.weight, std=2e-5) if name == "video" else nn.init.zeros_(head.weight)

    def features(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Pooled and normalised tokens of each modality, (B, dim)."""
        clips = batch["has_audio"].shape[0]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            tokens = self.encoder(self.encoder.patchify(batch), {"audio": batch["has_audio"]})
        if self.poolings:
            whole = {name: x.reshape(clips, -1, self.encoder.dim) for name, x in tokens.items()}
            pooled = {name: self.poolings[name](x) for name, x in whole.items()}
        else:
            pooled = self.encoder.pool(tokens, clips)
        return {name: self.norms[name](x) for name, x in pooled.items()}

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Logits (B, classes) of a batch with video, audio where the system takes it, and has_audio."""
        logits = [self.heads[name](self.dropout(x)) for name, x in self.features(batch).items()]
        return torch.stack(logits).sum(0)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of the classes (B, classes) float32: of one of them, or of each by itself if there may be many."""
        return logits.float().sigmoid() if self.many_labels else logits.float().softmax(-1)

    def encode(self, video: Tensor, audio: Tensor | None = None, has_audio: Tensor | None = None) -> Tensor:
        """Fused tokens of whole clips; see `avmae.models.autoencoder.encode`."""
        return encode(self.encoder, video, audio, has_audio)
