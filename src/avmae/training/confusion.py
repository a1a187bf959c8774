"""What a tested classifier takes for what."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from PIL import Image

from avmae.evaluation.scores import confusion, per_class, per_tag
from avmae.training.classification import Classification
from avmae.training.loggers import log_image, log_table


class Confusion(Callback):
    """After a test, what is taken for what: `confusion.png`, `per_class.csv` in the run's folder, and the loggers.

    Of clips with many labels there is the latter alone.
    """

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or not isinstance(pl_module, Classification):
            return
        # Here, for pretraining draws none and need not load matplotlib.
        from avmae.viewing.plots import confusion_figure, write_png

        data, folder = trainer.datamodule, Path(trainer.default_root_dir)
        if pl_module.network.many_labels:
            _write_classes(trainer, per_tag(pl_module.results["by_class"], data.classes), ["AP", "AUC", "clips"])
            return
        labels = data.splits.targets("test").tolist()
        counts = confusion(pl_module.results["predictions"], labels, len(data.classes))
        write_png(confusion_figure(counts.tolist(), data.classes), folder / "confusion.png")
        _write_classes(trainer, per_class(counts, data.classes), ["top1", "clips"])
        image = Image.open(folder / "confusion.png").convert("RGB")
        log_image(trainer.loggers, "test/confusion", image, trainer.global_step)


def _write_classes(trainer: L.Trainer, found: Mapping[str, Mapping[str, Any]], columns: Sequence[str]) -> None:
    header, rows = ["class", *columns], [[name, *(row.get(c, "") for c in columns)] for name, row in found.items()]
    with Path(trainer.default_root_dir, "per_class.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    log_table(trainer.loggers, "test/per_class", header, rows, trainer.global_step)
