"""What pretraining's features know of the classes, while it trains."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torchmetrics import MeanMetric

from avmae.data.datamodule import Batch
from avmae.evaluation.probes import effective_rank, knn_votes


class OnlineKNN(Callback):
    """Scores pretraining by what its features know of the classes, `val/knn_top1`, without training a thing.

    Features of the last training clips are kept as they were when seen; a validation clip gets the class that its
    nearest neighbours vote for, weighted by exp(cosine similarity / temperature) as in DINO (Caron et al. 2021). Both
    are features under the task's masks. It is a curve to watch; `python -m avmae.features` measures without masks.
    `val/effective_rank` of the kept features falls towards 1 when they collapse, labels or not. Of clips with many
    labels there is no vote.

    Args:
        bank: training clips kept on each process, and in checkpoints.
        neighbours: that vote.
        temperature: of their weights.
    """

    def __init__(self, bank: int = 4096, neighbours: int = 20, temperature: float = 0.07) -> None:
        self.bank, self.neighbours, self.temperature = bank, neighbours, temperature
        self._state: dict[str, Tensor] = {}
        self._seen = 0
        self._top1, self._rank = MeanMetric(), MeanMetric()

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self._seen, **self._state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seen = state_dict["seen"]
        self._state = {name: value for name, value in state_dict.items() if name != "seen"}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Replace the oldest clips."""
        if "features" not in outputs:
            return
        features = F.normalize(outputs["features"].float(), dim=1)
        if not self._state:
            self._state = {"features": features.new_zeros(self.bank, features.shape[1])}
            self._state["labels"] = features.new_full((self.bank,), -1, dtype=torch.int64)
        self._state = {name: value.to(features.device) for name, value in self._state.items()}
        place = (self._seen + torch.arange(len(features), device=features.device)) % self.bank
        # A step that is skipped because it is not finite has no say either.
        finite = features.isfinite().all(1)
        self._state["features"][place] = features.nan_to_num()
        if batch["label"].ndim == 1:
            self._state["labels"][place] = batch["label"].where(finite, -1)
        self._seen += len(features)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        outputs, batch, *_ = args
        classes = len(trainer.datamodule.classes)
        if not self._state or not isinstance(outputs, dict) or "features" not in outputs or classes < 2:
            return
        if batch["label"].ndim > 1:
            return
        votes = knn_votes(outputs["features"], **self._state, classes=classes, k=self.neighbours, t=self.temperature)
        hit = (votes.argmax(1) == batch["label"]).float()
        self._top1.to(hit.device).update(hit, (batch["clip_id"] >= 0).float())

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._state:
            kept = self._state["features"][: self._seen]
            self._rank.to(kept.device).update(effective_rank(kept))
        for name, metric in {"knn_top1": self._top1, "effective_rank": self._rank}.items():
            if metric.update_called:
                pl_module.log(f"val/{name}", metric.compute())
                metric.reset()
