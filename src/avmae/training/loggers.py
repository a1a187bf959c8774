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
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from PIL import Image

from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.classifier import Classifier
from avmae.models.summary import parts
from avmae.runs.environment import code_version


class _ResumableWriter(ExperimentWriter):
    """Keeps the rows of a resumed run up to where it continues; Lightning's writer would delete the file.

    Rows that cannot be written because the disk is full are kept, and written when there is room.
    """

    def __init__(self, log_dir: str, resumed: bool) -> None:
        self._resumed = resumed
        self._failed = False
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        file = Path(self.metrics_file_path)
        if not self._resumed:
            file.unlink(missing_ok=True)
        elif file.is_file():
            self.metrics_keys = _read(file)[0]

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        file = Path(self.metrics_file_path)
        if self._resumed and step is not None:
            self._resumed = False
            if file.is_file():
                names, rows = _read(file)
                _write(file, names, [row for row in rows if int(row["step"]) < step])
        super().log_metrics(metrics_dict, step)

    def save(self) -> None:
        names, self._size = list(self.metrics_keys), _size(self.metrics_file_path)
        try:
            super().save()
        except OSError as error:
            # Without half a row, and with the new names still new.
            self.metrics_keys = names
            if self._size:
                os.truncate(self.metrics_file_path, self._size)
            else:
                Path(self.metrics_file_path).unlink(missing_ok=True)
            if not self._failed:
                print(f"cannot write {self.metrics_file_path}: {error}; its rows wait for room", file=sys.stderr)
            self._failed = True
        else:
            self._failed = False

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        _write(Path(self.metrics_file_path), fieldnames, _read(Path(self.metrics_file_path))[1])
        self._size = _size(self.metrics_file_path)


def _size(file: str) -> int:
    return Path(file).stat().st_size if Path(file).is_file() else 0


def _write(file: Path, names: list[str], rows: list[dict[str, str]]) -> None:
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


class RunCSVLogger(CSVLogger):
    """Writes `metrics.csv` into the run's folder.

    Args:
        run_dir: the run's folder.
        resume: what the run resumes; None starts the file anew.
    """

    _experiment: _ResumableWriter | None

    def __init__(self, run_dir: str, resume: str | None = None) -> None:
        super().__init__(run_dir, name="", version="")
        self.resumed = resume is not None

    @property
    def experiment(self) -> Any:
        """The writer; made when first used, on the first process alone."""
        if self._experiment is None:
            os.makedirs(self.log_dir, exist_ok=True)
            self._experiment = _ResumableWriter(self.log_dir, self.resumed)
        return self._experiment


def wandb_logger(run_dir: str, project: str, name: str, offline: bool | None = None, **settings: Any) -> WandbLogger:
    """W&B, offline where there is no login, and the same W&B run when the run is resumed.

    W&B itself prints nothing.

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


def log_image(loggers: Iterable[Logger], name: str, image: Image.Image, step: int) -> None:
    """Log one image to W&B and TensorBoard."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_metrics({name: wandb.Image(image)}, step)
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
    """Log the whole config, `code_version` and the model's table; print where W&B shows the run.

    Args:
        loggers: of the run.
        config: resolved, plain data.
        network: what is trained.
    """
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
