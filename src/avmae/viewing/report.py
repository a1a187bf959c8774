"""One HTML page that shows what runs did: what it holds, gathered from folders, and its rendering."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import avmae
from avmae.errors import InputError
from avmae.evaluation.metrics import is_share, metric_text
from avmae.runs.history import Run, arrange, find_runs, read_run, read_study, varied
from avmae.viewing.plots import colours
from avmae.viewing.sections import (
    Cell,
    RunSection,
    Table,
    curve_plots,
    epoch_of,
    evaluation,
    reconstruction,
    study_plots,
    sweep_plots,
    swept_axis,
    table,
)
from avmae.viewing.templates import as_text, render

OVERVIEW = (
    *("train/loss", "val/loss", "val/loss_video", "val/loss_audio", "val/knn_top1", "val/top1", "test/top1"),
    *("test/top5", "results/top1", "results/top5", "results/sound/top1", "results/silent/top1"),
    *("val/mAP", "test/mAP", "results/mAP", "results/video_to_audio/r1", "results/audio_to_video/r1"),
)
"""Metrics that runs are compared by."""


@dataclass(frozen=True)
class Page:
    """A report.

    Args:
        html: the whole page; every text in it is escaped.
        counted: number of runs as text; empty without any.
        notes: what is missing or broken, by run.
    """

    html: str
    counted: str
    notes: list[str]


def build_page(
    inputs: Sequence[Path], reconstructions: Path | None, embed_mb: float, clips: int, defaults: Mapping[str, Any]
) -> Page:
    """Gather what lies in folders; see `avmae.report.report`.

    Args:
        inputs: folders of runs, sweeps and studies.
        reconstructions: a folder of reconstructions elsewhere.
        embed_mb: larger files are named instead of embedded.
        clips: reconstructions shown of a run.
        defaults: what `python -m avmae.train` does without any argument, by dotted key.

    Raises:
        InputError: a folder does not exist or holds nothing that could be shown.
    """
    folders, studies, found = gather(inputs, reconstructions)
    runs, sweeps = arrange([read_run(path) for path in {path.resolve(): path for path in folders}.values()])
    shown: dict[Run | None, list[Path]] = {run: [] for run in (*runs, None)}
    for path in dict.fromkeys(found):
        owners = [run for run in runs if path.is_relative_to(run.folder.resolve())]
        shown[max(owners, key=lambda run: len(run.folder.resolve().parts), default=None)].append(path)
    embedded = {run: [reconstruction(folder, embed_mb) for folder in paths[:clips]] for run, paths in shown.items()}
    left_out = {run: max(0, len(paths) - clips) for run, paths in shown.items()}
    shades = run_colours(runs, sweeps)
    sections = {
        run: RunSection(run, f"run-{number}", shades[run], evaluation(run), embedded[run], left_out[run])
        for number, run in enumerate(runs, 1)
    }
    tasks = {section.task: [s for s in sections.values() if s.task == section.task] for section in sections.values()}
    logged = [[section for section in alike if section.run.curves] for alike in tasks.values()]
    counted = f"{len(runs)} run{'s' * (len(runs) > 1)}" if runs else ""
    written = f"written {datetime.now():%Y-%m-%d %H:%M} by avmae {avmae.__version__}"
    html = render(
        "report.html",
        title=", ".join(dict.fromkeys(r.name or r.label for r in runs)) or ", ".join(p.resolve().name for p in inputs),
        meta=" · ".join(filter(None, [", ".join(map(str, inputs)), counted, written])),
        overview={task: overview(alike) for task, alike in tasks.items()} if len(runs) > 1 else {},
        plots=[
            *(sweep_plots([sections[job] for job in jobs], OVERVIEW) for jobs in sweeps),
            *(curve_plots(alike, named=len(runs) > 1) for alike in logged if alike),
            *(plots for file in studies for plots in study_plots(read_study(file))),
        ],
        differing=differing(list(sections.values())),
        changed=changed([run.config for run in runs if run.config], defaults),
        runs=list(sections.values()),
        reconstructions=embedded[None],
        left_out=left_out[None],
    )
    return Page(html, counted, [f"{run.label}: {note}" for run in runs for note in run.notes])


def gather(inputs: Sequence[Path], reconstructions: Path | None) -> tuple[list[Path], list[Path], list[Path]]:
    """Folders of runs, files of studies, and folders of reconstructions; see `build_page`."""
    runs, studies, shown = list[Path](), list[Path](), list[Path]()
    for folder in inputs:
        if not folder.is_dir():
            raise InputError(f"input={folder} is not a folder; give a run's, such as logs/NAME/TIME, or a sweep's")
        found, below, study = find_runs(folder), find_reconstructions(folder), folder / "study.json"
        if folder not in found and (folder / "results.json").is_file():
            found.append(folder)
        if not (found or below or study.is_file()):
            raise InputError(
                f"input={folder} holds no run (metrics.csv, summary.json or .hydra/config.yaml), no results.json, "
                "no study.json and no reconstruction; give logs/NAME/TIME, or a sweep's folder"
            )
        runs, shown = runs + found, shown + below
        studies += [study] if study.is_file() else []
    if reconstructions is not None:
        below = find_reconstructions(reconstructions)
        if not below:
            raise InputError(f"reconstructions={reconstructions} holds no reconstruction.png or reconstruction.mp4")
        shown += below
    return runs, studies, shown


def find_reconstructions(folder: Path) -> list[Path]:
    """Folders that `avmae.reconstruct` wrote, and those of the last epoch that a pretraining wrote."""
    files = (file for suffix in ("png", "mp4") for file in folder.resolve().rglob(f"reconstruction.{suffix}"))
    epochs = {file.parent: epoch_of(file.parent) for file in files}
    last: dict[Path, int] = {}
    for path, epoch in epochs.items():
        last[path.parent.parent] = max(last.get(path.parent.parent, -1), epoch)
    return sorted(path for path, epoch in epochs.items() if epoch in (-1, last[path.parent.parent]))


def run_colours(runs: Sequence[Run], sweeps: Sequence[Sequence[Run]]) -> dict[Run, str]:
    """A colour for each run, unlike those of the same task; from dark to bright along a sweep over numbers."""
    shades = dict[Run, str]()
    for task in dict.fromkeys(run.task for run in runs):
        alike = [run for run in runs if run.task == task]
        ordered = alike in sweeps and isinstance(alike[0].swept_value(swept_axis(alike)), float)
        shades |= zip(alike, colours(len(alike), ordered), strict=True)
    return shades


def overview(sections: Sequence[RunSection]) -> Table:
    """Final metrics of the runs of one task; the best accuracies are marked.

    Losses are not: under another mask or with other targets they measure another task.
    """
    known = {n: {s.run.final[n] for s in sections if n in s.run.final} for n in OVERVIEW}
    best = {name: max(values) for name, values in known.items() if len(values) > 1 and is_share(name)}
    rows = {
        s.link: {n: Cell(metric_text(n, v), best=v == best.get(n)) for n, v in s.run.final.items() if n in OVERVIEW}
        for s in sections
    }
    return table("run", rows, [name for name, values in known.items() if values])


def differing(sections: Sequence[RunSection]) -> Table | None:
    """Settings in which the runs differ."""
    configs = {section.link: section.run.config for section in sections if section.run.config}
    keys = varied(list(configs.values()))
    rows = {
        link: {key: Cell(as_text(config[key])) for key in keys if key in config} for link, config in configs.items()
    }
    return table("run", rows, keys) if keys else None


def changed(configs: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Key, value and default of settings that all runs share and training would not choose by itself."""
    differ = varied(configs)
    shared = {key: value for key, value in (configs[0] if configs else {}).items() if key not in differ}
    return [(key, shared[key], defaults.get(key, "–")) for key in varied([shared, defaults]) if key in shared]
