"""What lies in run folders: config, metrics, results, studies; for those who look at runs afterwards."""

import csv
import json
import math
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from avmae.errors import InputError
from avmae.runs.environment import ENVIRONMENT
from avmae.runs.folder import LATEST

RUN_FILES = (".hydra/config.yaml", "metrics.csv", "summary.json")
PACKAGES = ("avmae", "torch", "torchaudio", "torchvision", "lightning", "timm", "av")
"""Whose versions are shown of all that a run records."""
OWN_JSON = ("summary.json", "results.json", "study.json", "metrics.json")
STUDY_KEYS = ("system", "degradation", "severity", "metric", "value")
RECORD_BYTES = 1 << 16
"""Larger JSON files are data, not records of how a run was started."""


@dataclass(eq=False)
class Run:
    """What lies in one run's folder; what is missing or broken is empty, and `notes` says so.

    Args:
        config: by dotted key, interpolations as written.
        name: of the config, its interpolations resolved.
        overrides: what the command line set, by key.
        curves: (step, value) pairs by metric.
        summary: final metrics.
        results: what `avmae.evaluate` wrote.
        records: other small JSON files by name, for example versions; by dotted key.
        label: how the run is called among the others.
        swept: the keys that its sweep varied.
    """

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    overrides: dict[str, str] = field(default_factory=dict)
    command: str = ""
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    summary: dict[str, float] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    label: str = ""
    swept: tuple[str, ...] = ()

    @property
    def task(self) -> str:
        """`pretrain` or `classify`, by the config or else by what was logged."""
        named = self.config.get("task.name")
        return str(named or ("classify" if any(name.endswith("/top1") for name in self.final) else "pretrain"))

    @property
    def final(self) -> dict[str, float]:
        """Metrics by name: the last logged, the summary's, and those of `results` under `results/`."""
        last = {name: points[-1][1] for name, points in self.curves.items()}
        found = {f"results/{name}": v for name, v in self.results.items() if isinstance(v, float)}
        return last | {name: value for name, value in (self.summary | found).items() if math.isfinite(value)}

    def swept_value(self, key: str) -> float | str:
        """What the sweep set a key to, as a number where it is one."""
        value = self.overrides.get(key, "default")
        try:
            return float(value)
        except ValueError:
            return value


def find_runs(folder: Path, depth: int = 3) -> list[Path]:
    """The folder itself if it is a run's, or those of runs below it, jobs by their number.

    Raises:
        InputError: a folder cannot be read.
    """
    if any((folder / name).is_file() for name in RUN_FILES):
        return [folder]
    try:
        below = [child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from error
    below = [child for child in below if child.name != LATEST]
    below.sort(key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", path.name)])
    return [run for child in below for run in find_runs(child, depth - 1)] if depth else []


def read_run(folder: Path) -> Run:
    """Read what there is of a run; a file that cannot be read becomes a note."""
    run = Run(folder)

    def read(name: str, parse: Callable[[Path], Any], kind: type) -> Any:
        try:
            content = parse(folder / name)
        except FileNotFoundError:
            return kind()
        except Exception as error:  # YAML's errors share no class with JSON's.
            run.notes.append(f"{name} cannot be read: {str(error).splitlines()[0]}")
            return kind()
        if not isinstance(content, kind):
            run.notes.append(f"{name} holds no {'mapping' if kind is dict else 'list'}")
            return kind()
        return content

    run.config = flat(read(".hydra/config.yaml", _yaml, dict))
    run.name = re.sub(
        r"\$\{([\w.]+)\}", lambda key: str(run.config.get(key[1], key[0])), str(run.config.get("name", ""))
    )
    overrides = [str(line) for line in read(".hydra/overrides.yaml", _yaml, list)]
    run.overrides = dict(line.lstrip("+~").partition("=")[::2] for line in overrides)
    run.command = shlex.join(["python", "-m", "avmae.train", *overrides]) if run.config else ""
    run.curves = read("metrics.csv", lambda file: _curves(file, run.notes), dict)
    summary = read("summary.json", _json, dict)
    run.summary = {name: float(value) for name, value in summary.items() if isinstance(value, int | float)}
    run.notes += [f"{n} of summary.json is not finite" for n, v in run.summary.items() if not math.isfinite(v)]
    run.results = read("results.json", _json, dict)
    starts = read(ENVIRONMENT, _json, list)
    if starts and isinstance(starts[-1], dict):
        versions = starts[-1].pop("versions", {})
        shown = {name: versions[name] for name in PACKAGES if name in versions}
        run.records["environment"] = {"starts": len(starts), **flat(starts[-1]), **shown}
    for file in sorted(folder.glob("*.json")):
        if file.name not in (*OWN_JSON, ENVIRONMENT) and file.stat().st_size < RECORD_BYTES:
            run.records[file.stem] = flat(read(file.name, _json, dict))
    if not run.curves:
        run.notes.append("no curves: metrics.csv is missing or has no whole row")
    elif not run.summary:
        last = max(points[-1][0] for points in run.curves.values())
        run.notes.append(f"the run has not ended (no summary.json): figures are the last logged, at step {last:.0f}")
    return run


def _yaml(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _curves(file: Path, notes: list[str]) -> dict[str, list[tuple[float, float]]]:
    content = file.read_text(encoding="utf-8", errors="replace")
    curves: dict[str, list[tuple[float, float]]] = {}
    broken, wild = 0, dict[str, float]()
    # The last line may still be in writing: a number cut short is a number.
    for row in csv.DictReader(content[: content.rfind("\n") + 1].splitlines()):
        try:
            step = float(row.pop("step"))
            row.pop("epoch", None)
            values = {name: float(value) for name, value in row.items() if value}
        except (KeyError, TypeError, ValueError):
            broken += 1
            continue
        for name, value in values.items():
            if math.isfinite(value):
                curves.setdefault(name, []).append((step, value))
            else:
                wild.setdefault(name, step)
    if broken:
        notes.append(f"{broken} line{'s' if broken > 1 else ''} of metrics.csv cannot be read and left out")
    notes += [f"{name} is not finite at step {step:.0f}; such values are left out" for name, step in wild.items()]
    return curves


def arrange(runs: Sequence[Run]) -> tuple[list[Run], list[list[Run]]]:
    """Name the runs; returns them in order, jobs of a sweep over numbers by those, and the sweeps of several jobs."""
    groups: dict[Path, list[Run]] = {}
    for run in runs:
        parent = run.folder.parent
        swept = any((parent / name).is_file() for name in ("multirun.yaml", "sweep.csv"))
        groups.setdefault(parent if swept else run.folder, []).append(run)
    sweeps = []
    for jobs in groups.values():
        keys = tuple(varied([job.overrides for job in jobs]))
        for job in jobs:
            job.swept = keys
            job.label = ", ".join(f"{key}={job.overrides.get(key, 'default')}" for key in keys)
        if keys:
            if all(isinstance(job.swept_value(key), float) for job in jobs for key in keys):
                jobs.sort(key=lambda job: [float(job.swept_value(key)) for key in keys])
            sweeps.append(jobs)
    arranged = [run for jobs in groups.values() for run in jobs]
    for run in arranged:
        run.label = run.label or run.name or run.folder.resolve().name
    labels = [run.label for run in arranged]
    above = os.path.commonpath([run.folder.resolve().parent for run in arranged]) if arranged else ""
    for run in arranged:
        if labels.count(run.label) > 1:
            run.label = f"{run.label} ({run.folder.resolve().relative_to(above)})"
    return arranged, sweeps


def varied(mappings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys whose values differ, or that some lack."""
    keys = dict.fromkeys(key for mapping in mappings for key in mapping)
    missing = object()
    return [key for key in keys if any(m.get(key, missing) != mappings[0].get(key, missing) for m in mappings)]


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings by dotted key; lists are values."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return found


def read_reconstruction(folder: Path) -> dict[str, Any]:
    """`input`, `mask` and `systems` (metrics by system and name) of what `avmae.reconstruct` wrote.

    Its images say most, so a file of metrics that is missing, foreign or unfinished counts as empty.
    """
    try:
        content = dict(_json(folder / "metrics.json"))
    except (OSError, ValueError, TypeError):
        content = {}
    mask, systems = (found if isinstance(found := content.get(key), Mapping) else {} for key in ("mask", "systems"))
    systems = {label: figures for label, figures in systems.items() if isinstance(figures, Mapping)}
    return {"input": str(content.get("input", folder)), "mask": mask, "systems": systems}


def read_study(file: Path) -> list[dict[str, Any]]:
    """The rows of a study, `{"rows": [{"system": ..., "seed": ..., "degradation": ..., ...}, ...]}`.

    A row holds `STUDY_KEYS`, and where there are several `seed`, `fold` and any other key, such as `split`. Rows
    without a finite value are left out.
    """
    try:
        rows = _json(file)["rows"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f'{file} is no study: it must be JSON, {{"rows": [...]}} ({error})') from error
    if not isinstance(rows, Iterable) or not rows:
        raise InputError(f"{file} holds no rows")
    for number, row in enumerate(rows):
        missing = [key for key in STUDY_KEYS if not isinstance(row, dict) or key not in row]
        if missing:
            raise InputError(f"{file}: row {number} has no {missing[0]}; a row needs {', '.join(STUDY_KEYS)}")
        if not isinstance(row["value"], int | float | None):
            raise InputError(f"{file}: row {number} has value {row['value']!r}, which is no number")
        if not isinstance(row["severity"], int | float | str):
            row["severity"] = 0.0
    return [row for row in rows if row["value"] is not None and math.isfinite(row["value"])]
