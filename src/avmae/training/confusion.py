"""What a tested classifier takes for what."""

import csv
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback
from PIL import Image

from avmae.evaluation.scores import confusion, per_class
from avmae.training.classification import Classification
from avmae.training.loggers import log_image, log_table


class Confusion(Callback):
    """After a test, what is taken for what: `confusion.png`, `per_class.csv` in the run's folder, and the loggers."""

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or not isinstance(pl_module, Classification):
            return
        # Here, for pretraining draws none and need not load matplotlib.
        from avmae.viewing.plots import confusion_figure, write_png

        data, folder = trainer.datamodule, Path(trainer.default_root_dir)
        labels = data.splits.targets("test").tolist()
        counts = confusion(pl_module.results["predictions"], labels, len(data.classes))
        write_png(confusion_figure(counts.tolist(), data.classes), folder / "confusion.png")
        header = ["class", "top1", "clips"]
        rows = [[name, score["top1"], score["clips"]] for name, score in per_class(counts, data.classes).items()]
        with (folder / "per_class.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        image = Image.open(folder / "confusion.png").convert("RGB")
        log_image(trainer.loggers, "test/confusion", image, trainer.global_step)
        log_table(trainer.loggers, "test/per_class", header, rows, trainer.global_step)
