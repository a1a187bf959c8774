"""Cross-modal contrast: a clip's video and audio should find each other among those of other clips."""

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(video: Tensor, audio: Tensor, paired: Tensor, temperature: float) -> Tensor:
    """InfoNCE in both directions over the clips that show both modalities (CAV-MAE equation 7, their mean).

    Args:
        video: (B, dim), one vector a clip; B counts the clips of all processes.
        audio: (B, dim).
        paired: (B,) bool, clips with both modalities shown; others are no candidates and do not count.
        temperature: by which cosine similarities are divided (CAV-MAE: 0.05).

    Returns:
        Scalar float32, the mean over those clips; 0 where there is none.
    """
    # Outside autocast, which would round logits to bf16: at a temperature of 0.05 by up to 0.1.
    with torch.autocast(video.device.type, enabled=False):
        logits = F.normalize(video.float(), dim=1) @ F.normalize(audio.float(), dim=1).T / temperature
    logits = logits.masked_fill(~(paired[:, None] & paired[None]), torch.finfo(logits.dtype).min)
    label = torch.arange(len(logits), device=logits.device)
    losses = F.cross_entropy(logits, label, reduction="none") + F.cross_entropy(logits.T, label, reduction="none")
    # A row without a candidate has equal logits: a constant, but not a loss.
    return torch.where(paired, losses / 2, 0.0).sum() / paired.sum().clamp(min=1)


def recall(video: Tensor, audio: Tensor, ranks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """Retrieval in both directions: the share of clips whose other modality is among the k nearest of all.

    Args:
        video: (N, dim), one vector a clip.
        audio: (N, dim), of the same clips, all of which have audio.
        ranks: each k.

    Returns:
        `video_to_audio/r1` and so on, as shares of 1.
    """
    similarity = F.normalize(video.float(), dim=1) @ F.normalize(audio.float(), dim=1).T
    own = similarity.diagonal()
    # Equal similarities count half, so that a collapsed model is at chance.
    before = {
        "video_to_audio": (similarity > own[:, None]).sum(1) + ((similarity == own[:, None]).sum(1) - 1) / 2,
        "audio_to_video": (similarity > own[None]).sum(0) + ((similarity == own[None]).sum(0) - 1) / 2,
    }
    return {f"{name}/r{k}": float((rank < k).float().mean()) for name, rank in before.items() for k in ranks}
