"""Fine-tuning on clips with many labels as a Lightning task."""

import torch.nn.functional as F
from torch import Tensor

from avmae.training.classification import Classification


class Tagging(Classification):
    """Trains a `Classifier` whose classes do not exclude each other, and ranks clips by each; else `Classification`."""

    watched = ("val/mAP", "max")

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy of each class, the mean over classes, of logits and shares (B, classes) float32.

        Smoothing is timm's `BinaryCrossEntropy`'s: towards 1 / classes.
        """
        smooth = target * (1 - self.label_smoothing) + self.label_smoothing / self.network.classes
        return F.binary_cross_entropy_with_logits(logits, smooth)
