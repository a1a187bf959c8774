"""What frozen features know of the classes."""

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGE = 1.0
"""Weight of the penalty, for features of unit variance."""


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


def linear_hits(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int) -> Tensor:
    """Which test clips (N,) bool a ridge regression to classes tells, from features (N, D) float32 and labels (N,)."""
    features, labels = train[0].double(), train[1]
    mean, std = features.mean(0), features.std(0).clamp(min=1e-6)
    targets = F.one_hot(labels, classes).double()
    x = (features - mean) / std
    weights = torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1]).double(), x.T @ (targets - targets.mean(0)))
    scores = (test[0].double() - mean) / std @ weights + targets.mean(0)
    return scores.argmax(1) == test[1]


def effective_rank(features: Tensor) -> float:
    """RankMe of features (N, D): exp of the entropy of their singular values' shares (Garrido et al. 2023, equation 1).

    1 where all clips have the same features but for length, as after a collapse; at most min(N, D).
    """
    values = torch.linalg.svdvals(features.float())
    shares = values / values.sum().clamp(min=1e-7) + 1e-7
    return float((-shares * shares.log()).sum().exp())
