"""Loggers that go on where a resumed run stopped, and that never ask."""

import csv
import os
import sys
import uuid
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter


class _ResumableWriter(ExperimentWriter):
    """Keeps the rows of a resumed run up to where it goes on, where Lightning's writer deletes the file.

    What cannot be written, for the disk is full, is kept and written when there is room.
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
        if self._resumed and step is not None and file.is_file():
            names, rows = _read(file)
            _write(file, names, [row for row in rows if int(row["step"]) < step])
            self._resumed = False
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
        return list(reader.fieldnames or []), list(reader)


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

    Args:
        run_dir: the run's folder; the W&B id is kept there in `wandb_id.txt`.
        project: in W&B.
        name: of the run.
        offline: None decides by whether there is a login.
        settings: passed on to `wandb.init`: entity, group, tags, notes.
    """
    if offline is None:
        offline = os.environ.get("WANDB_MODE") == "offline" or not wandb.api.api_key
        if offline:
            print(f"W&B: no login, logging offline; upload later with: wandb sync {run_dir}/wandb/offline-run-*")
    id_file = Path(run_dir) / "wandb_id.txt"
    if not id_file.is_file():
        id_file.write_text(uuid.uuid4().hex[:8])
    return WandbLogger(
        project=project,
        name=name,
        save_dir=run_dir,
        id=id_file.read_text().strip(),
        offline=offline,
        resume=None if offline else "allow",
        **settings,
    )
