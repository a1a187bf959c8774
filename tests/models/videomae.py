"""VideoMAE as transformers has it, at the size of `systems`, and where its weights belong in ours."""

import torch
from systems import CLIP, SIZE, disturb
from torch import Tensor
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification

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


def foreign(kind: type[VideoMAEForPreTraining] | type[VideoMAEForVideoClassification]) -> torch.nn.Module:
    torch.manual_seed(0)
    config = VideoMAEConfig(**CONFIG, use_mean_pooling=kind is VideoMAEForVideoClassification)
    model = kind(config).eval()
    disturb(model, seed=1)
    return model


def to_ours(foreign: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename VideoMAE's weights, join its query, key and value, and flatten its convolution."""
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
            ours[f"{here}.{n}.attn.qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    for name, value in weights.items():
        module, _, kind = name.rpartition(".")
        ours[f"{modules[module]}.{kind}"] = value
    return ours
