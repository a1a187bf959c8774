"""Image transformers as timm has them, at the size of `systems`."""

from typing import Any

import torch
from systems import CLIP, SIZE, disturb
from timm.models.vision_transformer import VisionTransformer


def vit(**changes: Any) -> VisionTransformer:
    torch.manual_seed(0)
    settings = {"img_size": CLIP.size, "patch_size": 8, "embed_dim": SIZE.dim, "depth": SIZE.depth}
    model = VisionTransformer(**settings | {"num_heads": SIZE.heads, "num_classes": 5} | changes)
    disturb(model, seed=1)
    return model.eval()
