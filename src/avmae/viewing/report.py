"""One HTML page that shows what runs did: what it holds, gathered from folders, and its rendering."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import avmae
from avmae.errors import InputError
from avmae.runs.history import Run, arrange, find_runs, read_run, read_study, varied
from avmae.viewing.plots import colours
from avmae.viewing.sections import (
    Plots,
    RunSection,
    Shown,
    curve_plots,
    epoch_of,
    reconstruction,
    run_section,
    study_plots,
    sweep_plots,
    swept_axis,
)
from avmae.viewing.tables import Cell, Table, as_text, results_table

OVERVIEW = (
    *("train/loss", "val/loss", "val/loss_video", "val/loss_audio", "val/knn_top1", "val/top1", "test/top1"),
    *("test/top5", "results/top1", "results/top5", "results/sound/top1", "results/silent/top1"),
    *("results/video_to_audio/r1", "results/audio_to_video/r1"),
)
"""Metrics that runs are compared by."""


@dataclass(frozen=True)
class Page:
    """What `report.html` shows.

    Args:
        title: names of the runs, or of the folders.
        meta: where it is from, how much it is, when and with what it was written.
        counted: number of runs as text; empty without any.
        overview: final metrics of several runs, by task.
        plots: of sweeps, curves and studies.
        differing: settings in which the runs differ.
        changed: key, value and default of settings that all runs share and training would not choose by itself.
        runs: a section for each.
        reconstructions: those of no run.
        left_out: how many further ones `clips` leaves out.
    """

    title: str
    meta: str
    counted: str
    overview: dict[str, Table]
    plots: list[Plots]
    differing: Table | None
    changed: list[tuple[str, str, str]]
    runs: list[RunSection]
    reconstructions: list[Shown]
    left_out: int

    @property
    def notes(self) -> list[str]:
        """What is missing or broken, by run."""
        return [f"{section.run.label}: {note}" for section in self.runs for note in section.run.notes]

    def render(self) -> str:
        """The page as HTML; every text in it is escaped."""
        import jinja2

        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        return environment.get_template("report.html").render(page=self)

    def write(self, file: Path) -> None:
        """Write `render()`; an InputError says that it cannot be written."""
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self.render(), encoding="utf-8")
        except OSError as error:
            raise InputError(f"output={file} cannot be written: {error.strerror}; choose another") from error


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
    owned: dict[Path | None, list[Path]] = {}
    for path in dict.fromkeys(path.resolve() for path in found):
        owners = [run.folder for run in runs if run.folder.resolve() in (path, *path.parents)]
        owned.setdefault(max(owners, key=lambda owner: len(owner.parts), default=None), []).append(path)
    shades = dict[Run, str]()
    for task in dict.fromkeys(run.task for run in runs):
        alike = [run for run in runs if run.task == task]
        ordered = alike in sweeps and isinstance(alike[0].swept_value(swept_axis(alike)), float)
        shades |= zip(alike, colours(len(alike), ordered), strict=True)
    sections = {
        run: run_section(run, f"run-{number}", shades[run], owned.get(run.folder, []), clips, embed_mb)
        for number, run in enumerate(runs, 1)
    }
    tasks = [[s for s in sections.values() if s.task == t] for t in dict.fromkeys(s.task for s in sections.values())]
    logged = [[section for section in alike if section.run.curves] for alike in tasks]
    counted = f"{len(runs)} run{'s' * (len(runs) > 1)}" if runs else ""
    where = [", ".join(map(str, inputs)), *filter(None, [counted])]
    differing, changed = settings(list(sections.values()), defaults)
    others = owned.get(None, [])
    return Page(
        title=", ".join(dict.fromkeys(r.name or r.label for r in runs)) or ", ".join(p.resolve().name for p in inputs),
        meta=" · ".join([*where, f"written {datetime.now():%Y-%m-%d %H:%M} by avmae {avmae.__version__}"]),
        counted=counted,
        overview={s[0].task: results_table(OVERVIEW, {x.link: x.run.final for x in s}) for s in tasks if len(runs) > 1},
        plots=[
            *(sweep_plots([sections[job] for job in jobs], OVERVIEW) for jobs in sweeps),
            *(curve_plots(alike, named=len(runs) > 1) for alike in logged if alike),
            *(plots for file in studies for plots in study_plots(read_study(file))),
        ],
        differing=differing,
        changed=changed,
        runs=list(sections.values()),
        reconstructions=[reconstruction(folder, embed_mb) for folder in others[:clips]],
        left_out=max(0, len(others) - clips),
    )


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


def settings(
    sections: Sequence[RunSection], defaults: Mapping[str, Any]
) -> tuple[Table | None, list[tuple[str, str, str]]]:
    """`differing` and `changed` of a page."""
    known = [section for section in sections if section.run.config]
    configs = [section.run.config for section in known]
    keys = varied(configs)
    shared = configs[0] if configs else {}
    changed = [key for key in varied([shared, defaults]) if key in shared and key not in keys]

    def text(config: Mapping[str, Any], key: str) -> str:
        return as_text(config[key]) if key in config else "–"

    rows = [
        [Cell(section.run.label, section.link.href), *(Cell(text(section.run.config, key)) for key in keys)]
        for section in known
    ]
    differing = Table(["run", *keys], rows).upright() if keys else None
    return differing, [(key, text(shared, key), text(defaults, key)) for key in changed]
