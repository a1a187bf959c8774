"""VideoMAE as transformers has it, at the size of `systems`, and where its weights belong in ours.

The table of names is written anew here: what `avmae.models.layouts` gets wrong, the tests would not see through it.
"""

from typing import Any

import torch
from systems import CLIP, SIZE, disturb
from torch import Tensor, nn
from transformers import PreTrainedModel, VideoMAEConfig, VideoMAEForVideoClassification

CONFIG = {
    "image_size": CLIP.size,
    "patch_size": 8,
    "num_frames": CLIP.frames,
    "tubelet_size": 2,
    "hidden_size": SIZE.dim,
    "num_hidden_layers": SIZE.depth,
    "num_attention_heads": SIZE.heads,
    "intermediate_size": 4 * SIZE.dim,
    "decoder_hidden_size": SIZE.decoder_dim,
    "decoder_num_hidden_layers": SIZE.decoder_depth,
    "decoder_num_attention_heads": SIZE.decoder_heads,
    "decoder_intermediate_size": 4 * SIZE.decoder_dim,
    "num_labels": 5,
    "layer_norm_eps": 1e-6,
}
BLOCK = {
    "layernorm_before": "norm1",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
MODULES = {
    "encoder_to_decoder": "decoders.video.project",
    "videomae.layernorm": "decoders.video.encoder_norm",
    "decoder.norm": "decoders.video.norm",
    "decoder.head": "decoders.video.head",
    "fc_norm": "norms.video",
    "classifier": "heads.video",
}


def foreign(kind: type[PreTrainedModel], **changes: Any) -> PreTrainedModel:
    """One of transformers' VideoMAE models, in evaluation mode."""
    torch.manual_seed(0)
    model = kind(VideoMAEConfig(**CONFIG | {"use_mean_pooling": kind is VideoMAEForVideoClassification} | changes))
    disturb(model, seed=1)
    return model.eval()


def fill(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load all weights of one of our models; its positions are computed."""
    lacking = model.load_state_dict(weights, strict=False)
    assert lacking.unexpected_keys == []
    assert all(name.endswith(".positions") for name in lacking.missing_keys)


def to_ours(foreign: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename VideoMAE's weights (or their gradients), join its query, key and value, and flatten its convolution."""
    weights = dict(foreign)
    kernel = weights.pop("videomae.embeddings.patch_embeddings.projection.weight")
    stem = "encoder.modalities.video.embed"
    ours = {
        # (dim, C, p0, p1, p2) to our order of a patch's numbers, in which channels run fastest.
        f"{stem}.weight": kernel.permute(0, 2, 3, 4, 1).flatten(1),
        f"{stem}.bias": weights.pop("videomae.embeddings.patch_embeddings.projection.bias"),
    }
    if "mask_token" in weights:
        ours["decoders.video.mask_token"] = weights.pop("mask_token").flatten()
    stacks = {
        "videomae.encoder.layer": ("encoder.modalities.video.blocks", SIZE.depth),
        "decoder.decoder_layers": ("decoders.video.blocks", SIZE.decoder_depth),
    }
    modules = dict(MODULES)
    for theirs, (here, depth) in stacks.items():
        for n in range(depth):
            modules |= {f"{theirs}.{n}.{a}": f"{here}.{n}.{b}" for a, b in BLOCK.items()}
            attention = f"{theirs}.{n}.attention.attention"
            if f"{attention}.query.weight" not in weights:
                continue
            parts = [weights.pop(f"{attention}.{part}.weight") for part in ("query", "key", "value")]
            query, value = (weights.pop(f"{attention}.{part}.bias") for part in ("query", "value"))
            ours[f"{here}.{n}.attn.qkv.weight"] = torch.cat(parts)
            ours |= {f"{here}.{n}.attn.q_bias": query, f"{here}.{n}.attn.v_bias": value}
    for name, value in weights.items():
        module, _, kind = name.rpartition(".")
        ours[f"{modules[module]}.{kind}"] = value
    return ours
