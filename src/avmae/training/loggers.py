"""Loggers that continue where a resumed run stopped and never ask; what a run was and shows, for all of them."""

import csv
import json
import os
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image

from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.classifier import Classifier
from avmae.models.summary import parts
from avmae.runs.environment import code_version


class RunCSVLogger(Logger):
    """Writes `metrics.csv`, a row for each time that something is logged, and `hparams.yaml` to the run's folder.

    A resumed run keeps the rows up to where it continues. Rows that cannot be written because the disk is full are
    kept, and written when there is room.

    Args:
        run_dir: the run's folder.
        resume: what the run resumes; None starts the file anew.
    """

    name = version = None

    def __init__(self, run_dir: str, resume: str | None = None) -> None:
        super().__init__()
        self.file, self.resumed = Path(run_dir, "metrics.csv"), resume is not None
        self._names: list[str] = []
        self._waiting: list[dict[str, Any]] = []
        self._begun = self._failed = False

    def log_hyperparams(self, params: Mapping[str, Any], *_: Any) -> None:
        save_hparams_to_yaml(self.file.with_name("hparams.yaml"), dict(params))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if not self._begun:
            self._begin(step or 0)
        self._waiting.append({"step": step, **metrics})

    def _begin(self, step: int) -> None:
        """Keep the rows of a resumed run before a step."""
        self._begun = True
        self.file.parent.mkdir(parents=True, exist_ok=True)
        if self.resumed and self.file.is_file():
            self._names, rows = _read(self.file)
            _write(self.file, self._names, [row for row in rows if int(row["step"]) < step])
        else:
            self.file.unlink(missing_ok=True)

    def save(self) -> None:
        """Write the rows that wait; new metrics are new columns."""
        if not self._waiting:
            return
        names, size = sorted({name for row in self._waiting for name in row} | {*self._names}), 0
        try:
            if names != self._names:
                _write(self.file, names, [*(_read(self.file)[1] if self._names else ()), *self._waiting])
            else:
                size = self.file.stat().st_size
                with self.file.open("a", newline="") as stream:
                    csv.DictWriter(stream, names).writerows(self._waiting)
        except OSError as error:
            if size:
                # Without half a row.
                os.truncate(self.file, size)
            if not self._failed:
                print(f"cannot write {self.file}: {error}; its rows wait for room", file=sys.stderr)
            self._failed = True
        else:
            self._names, self._waiting, self._failed = names, [], False


def _write(file: Path, names: list[str], rows: list[dict[str, Any]]) -> None:
    temporary = file.with_suffix(".tmp")
    with temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(file)


def _read(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    with file.open(newline="") as stream:
        reader = csv.DictReader(stream)
        # A power cut may have left the last line in half.
        return list(reader.fieldnames or []), [row for row in reader if (row["step"] or "").isdigit()]


def wandb_logger(run_dir: str, project: str, name: str, offline: bool | None = None, **settings: Any) -> WandbLogger:
    """W&B, offline where there is no login, and the same W&B run when the run is resumed; W&B itself prints nothing.

    Args:
        run_dir: the run's folder; the W&B id is kept there in `wandb_id.txt`.
        project: in W&B.
        name: of the run.
        offline: None decides by whether there is a login.
        settings: passed on to `wandb.init`: entity, group, tags, notes.
    """
    wandb.setup(wandb.Settings(silent=True))
    if offline is None:
        offline = os.environ.get("WANDB_MODE") == "offline" or not wandb.login(prompt=False, verify=False)
        if offline:
            print(f"W&B: no login, logging offline; upload later with: wandb sync {run_dir}/wandb/offline-run-*")
    id_file = Path(run_dir) / "wandb_id.txt"
    if not id_file.is_file():
        # The agent of a W&B sweep has named the run already.
        id_file.write_text(os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8])
    return WandbLogger(
        project=project,
        name=name,
        save_dir=run_dir,
        id=id_file.read_text().strip(),
        offline=offline,
        # Lightning's own switch comes too late where wandb has been used before.
        mode="offline" if offline else "online",
        resume=None if offline else "allow",
        **settings,
    )


def log_table(
    loggers: Iterable[Logger], name: str, header: Sequence[str], rows: Sequence[Sequence[Any]], step: int
) -> None:
    """Log a table to W&B and, as text, to TensorBoard; `name` is a path such as `test/per_class`."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table(name, list(header), [list(row) for row in rows], step=step)
        elif isinstance(logger, TensorBoardLogger):
            lines = [header, ["---"] * len(header), *rows]
            text = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
            logger.experiment.add_text(name, text, step)


def log_image(loggers: Iterable[Logger], name: str, image: Image.Image, step: int, caption: str | None = None) -> None:
    """Log one image to W&B and TensorBoard."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_metrics({name: wandb.Image(image, caption=caption)}, step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, np.asarray(image), step, dataformats="HWC")


def model_table(network: MaskedAutoencoder | Classifier) -> list[list[str]]:
    """The model in rows of part, parameters, those trained, and tokens of a clip that go through; a header first."""
    rows = [[part.name, _count(part.parameters), _count(part.trained), f"{part.tokens}"] for part in parts(network)]
    total = [sum(p.numel() for p in network.parameters() if p.requires_grad >= trained) for trained in (False, True)]
    return [["part", "parameters", "trained", "tokens"], *rows, ["all", *map(_count, total), ""]]


def _count(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number / 1e3:.1f} k" if number >= 1e3 else f"{number}"


def log_run(loggers: Iterable[Logger], config: Mapping[str, Any], network: MaskedAutoencoder | Classifier) -> None:
    """Log the whole config, `code_version` and the model's table; print where W&B shows the run."""
    loggers, code = list(loggers), code_version()
    for logger in loggers:
        logger.log_hyperparams({**config, "code": code})
        if isinstance(logger, TensorBoardLogger):
            for name, content in (("config", config), ("code", code)):
                text = json.dumps(content, indent=2, default=str)
                logger.experiment.add_text(f"run/{name}", "\n".join(f"    {line}" for line in text.splitlines()))
        elif isinstance(logger, WandbLogger) and not logger.experiment.offline:
            print(f"W&B: {logger.experiment.url}")
    header, *rows = model_table(network)
    log_table(loggers, "run/model", header, rows, step=0)


def finish(loggers: Iterable[Logger], failed: bool) -> None:
    """End the W&B run: the next job of a sweep is a run of its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code=int(failed))
