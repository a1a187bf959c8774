"""What frozen features know of the classes."""

import torch.nn.functional as F
from torch import Tensor


def knn_votes(queries: Tensor, features: Tensor, labels: Tensor, classes: int, k: int = 20, t: float = 0.07) -> Tensor:
    """Classes by votes of the nearest neighbours, weighted by exp(cosine similarity / t).

    Args:
        queries: (Q, D).
        features: (N, D), of unit length.
        labels: (N,) int64; -1 has no vote.
        classes: how many there are.
        k: neighbours that vote.
        t: temperature.

    Returns:
        (Q, classes) float32.
    """
    votes = features.new_zeros(len(queries), classes)
    # In pieces, for all similarities of a large data set do not fit in memory.
    for part, vote in zip(queries.split(1024), votes.split(1024), strict=True):
        similarity = (F.normalize(part.float(), dim=1) @ features.T).masked_fill_(labels < 0, float("-inf"))
        nearest = similarity.topk(min(k, len(labels)))
        vote.scatter_add_(1, labels[nearest.indices].clamp(min=0), (nearest.values / t).exp())
    return votes
