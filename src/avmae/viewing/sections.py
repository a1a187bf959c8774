"""The report's sections: plots of several runs, and what one run left behind."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avmae.runs.history import Run, flat, read_reconstruction
from avmae.viewing import plots
from avmae.viewing.tables import Cell, Table, as_text, metric, metrics_table, study_table

TITLES = {
    "loss": "Loss",
    "loss_video": "Video loss",
    "loss_audio": "Audio loss",
    "loss_contrast": "Contrastive loss",
    "knn_top1": "k-NN accuracy",
    "top1": "Top-1 accuracy",
    "sound/top1": "Top-1 accuracy, clips with audio",
    "silent/top1": "Top-1 accuracy, silent clips",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "data_wait": "Share of time spent waiting for data",
    "clips_per_second": "Clips per second",
}
SHOWN = ("loss", "loss_video", "loss_audio", "loss_contrast", "top1", "knn_top1", "lr")
"""Curves shown at once, in this order; others are folded away."""
PARTS = {"train": "training", "val": "validation", "test": "test", "results": "avmae.evaluate"}
TASKS = {"pretrain": "Pretraining", "classify": "Classification"}


@dataclass(frozen=True)
class Plots:
    """Plots under one heading.

    Args:
        title: the heading.
        legend: the lines of all plots.
        panels: SVG by title.
        note: how to read them.
        folded: further panels, shown on demand.
        table: the same as numbers.
    """

    title: str
    legend: list[Cell]
    panels: list[tuple[str, str]]
    note: str
    folded: list[tuple[str, str]] = field(default_factory=list)
    table: Table | None = None


@dataclass(frozen=True)
class Evaluation:
    """What `avmae.evaluate` found.

    Args:
        metrics: by checkpoint.
        classes: name, top-1, number of clips and what it is most often taken for; best first.
        confusion: SVG; empty without one.
    """

    metrics: Table | None
    classes: list[tuple[str, float, int, str]] = field(default_factory=list)
    confusion: str = ""


@dataclass(frozen=True)
class Shown:
    """One reconstruction.

    Args:
        name: of the clip.
        mask: its settings.
        video: `data:` address; empty where there is none.
        sheet: the contact sheet's.
        notes: what was too large.
        metrics: by system.
    """

    name: str
    mask: str
    video: str
    sheet: str
    notes: list[str]
    metrics: Table | None


@dataclass(frozen=True)
class RunSection:
    """One run: what lies in its folder, where it stands on the page (`anchor`), and what is shown of it, as texts."""

    run: Run
    anchor: str
    colour: str
    task: str
    metrics: dict[str, str]
    config: str
    records: dict[str, dict[str, str]]
    evaluation: Evaluation | None
    reconstructions: list[Shown]
    left_out: int

    @property
    def link(self) -> Cell:
        """The run's name, in its colour, leading to its section."""
        return Cell(self.run.label, f"#{self.anchor}", self.colour)


def run_section(run: Run, anchor: str, colour: str, folders: Sequence[Path], clips: int, embed_mb: float) -> RunSection:
    """What is shown of a run; of its folders of reconstructions the first few."""
    return RunSection(
        run,
        anchor,
        colour,
        task=TASKS.get(run.task, run.task),
        metrics={n: metric(n, value) for n, value in sorted(run.final.items()) if not n.startswith("results/")},
        config="\n".join(f"{key}: {as_text(value)}" for key, value in run.config.items()),
        records={name: {k: as_text(v) for k, v in flat(record).items()} for name, record in run.records.items()},
        evaluation=evaluation(run),
        reconstructions=[reconstruction(folder, embed_mb) for folder in folders[:clips]],
        left_out=max(0, len(folders) - clips),
    )


def sweep_plots(sections: Sequence[RunSection], names: Sequence[str]) -> Plots:
    """Final metrics of a sweep's jobs against the swept key; further keys make lines, seeds are averaged over."""
    jobs = [section.run for section in sections]
    axis = swept_axis(jobs)
    kinds = [key for key in jobs[0].swept if key not in (axis, "seed")]
    names = [name for name in names if sum(name in job.final for job in jobs) > 1]
    line_of = [", ".join(f"{key}={job.overrides.get(key, 'default')}" for key in kinds) for job in jobs]
    lines = list(dict.fromkeys(line_of))
    panels = []
    for name in names:
        if name == "train/loss" and "val/loss" in names:
            continue
        points = [
            plots.Point(line, s.run.swept_value(axis), s.run.final[name], s.link.href, "" if kinds else s.colour)
            for s, line in zip(sections, line_of, strict=True)
            if name in s.run.final
        ]
        part, _, rest = name.partition("/")
        title = f"{TITLES.get(rest, rest)}, {PARTS.get(part, part)}"
        panels.append((title, plots.svg(plots.dependence_figure(points, axis, name, lines=lines))))
    note = "Each point is a job and links to its section."
    if "seed" in jobs[0].swept and axis != "seed":
        note += " Mean and sample standard deviation over seeds."
    if axis.startswith("mask."):
        note += " Losses are over masked patches: under other masks they measure another task, so compare accuracies."
    return Plots(f"Results against {axis}", legend(lines) if kinds else [], panels, note)


def curve_plots(sections: Sequence[RunSection], named: bool) -> Plots:
    """Curves of the runs of one task, one plot for each quantity; with a legend if the runs are to be named."""
    logged = dict.fromkeys(name for s in sections for name in s.run.curves)
    names = sorted({name.partition("/")[2] for name in logged if name.startswith(("train/", "val/"))})
    shown, folded = list[tuple[str, str]](), list[tuple[str, str]]()
    for name in sorted(names, key=lambda n: (SHOWN.index(n) if n in SHOWN else len(SHOWN), n)):
        curves = [
            plots.Curve(s.colour, s.run.curves.get(f"train/{name}", []), s.run.curves.get(f"val/{name}", []))
            for s in sections
        ]
        (shown if name in SHOWN else folded).append(
            (TITLES.get(name, name), plots.svg(plots.curves_figure(name, curves)))
        )
    note = "Where both are known, thin lines are training and lines with dots are validation."
    averaged = -(-max(len(points) for s in sections for points in s.run.curves.values()) // plots.POINTS)
    if averaged > 1:
        note += f" Lines show means over up to {averaged} logged values."
    links = [section.link for section in sections] if named else []
    return Plots(f"{sections[0].task} curves", links, shown, note, folded)


def study_plots(rows: Sequence[Mapping[str, Any]]) -> list[Plots]:
    """Each metric of a study under each of its conditions."""
    keys, parts = plots.study_conditions(rows), dict[tuple[Any, ...], list[Mapping[str, Any]]]()
    for row in rows:
        parts.setdefault((row["metric"], *(row.get(key) for key in keys)), []).append(row)
    sections = []
    for (name, *values), chosen in parts.items():
        conditions = [f"{key} {value}" for key, value in zip(keys, values, strict=True) if value is not None]
        sections.append(
            Plots(
                f"Study: {', '.join([name, *conditions])}",
                legend(list(dict.fromkeys(str(row["system"]) for row in chosen))),
                [
                    (kind, plots.svg(plots.study_figure(chosen, name, [kind], labels=False)))
                    for kind in plots.study_points(chosen, name)
                ],
                "Means, and sample standard deviations where there are several seeds.",
                table=study_table(name, chosen, plots.CLEAN),
            )
        )
    return sections


def evaluation(run: Run) -> Evaluation | None:
    """Metrics, classes and their confusion, added up over folds; what `avmae.evaluate` never wrote becomes a note."""
    if not run.results:
        return None
    parts = run.results.get("runs") or [run.results]
    try:
        metrics = metrics_table("checkpoint", {str(part["ckpt"]): part for part in parts})
        if "confusion" not in parts[0]:
            return Evaluation(metrics)
        names = list(map(str, parts[0]["classes"]))
        confusion = [
            [sum(cells) for cells in zip(*lines, strict=True)]
            for lines in zip(*(part["confusion"] for part in parts), strict=True)
        ]
        classes = []
        for label, (name, counts) in enumerate(zip(names, confusion, strict=True)):
            clips = sum(counts)
            count, other = max(((c, n) for n, c in enumerate(counts) if n != label), default=(0, 0))
            if clips:
                classes.append((name, counts[label] / clips, clips, f"{count} as {names[other]}" if count else ""))
        classes.sort(key=lambda row: -row[1])
        return Evaluation(metrics, classes, plots.svg(plots.confusion_figure(confusion, names)))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        run.notes.append(f"results.json is not what avmae.evaluate writes ({type(error).__name__}: {error})")
        return None


def reconstruction(folder: Path, embed_mb: float) -> Shown:
    """What `avmae.reconstruct` or a pretraining wrote to a folder, files up to a size in MB embedded."""
    content, epoch = read_reconstruction(folder), epoch_of(folder)
    found, notes = [], []
    for name, kind in {"mp4": "video/mp4", "png": "image/png"}.items():
        file = folder / f"reconstruction.{name}"
        size = file.stat().st_size / 1e6 if file.is_file() else 0
        if size > embed_mb:
            notes.append(f"{file} has {size:.1f} MB and was left out; embed_mb={size + 1:.0f} includes it")
        embedded = bool(size) and size <= embed_mb
        found.append(f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}" if embedded else "")
    video, sheet = found
    return Shown(
        Path(content["input"]).name + (f", epoch {epoch}" if epoch >= 0 else ""),
        ", ".join(f"{key} {as_text(value)}" for key, value in content["mask"].items()),
        video,
        sheet,
        notes,
        metrics_table("system", content["systems"]),
    )


def epoch_of(folder: Path) -> int:
    """The epoch after which a pretraining wrote a reconstruction; -1 for what `avmae.reconstruct` wrote."""
    found = re.search(r"/reconstructions/epoch_(\d+)/[^/]+$", folder.as_posix())
    return int(found[1]) if found else -1


def legend(lines: Sequence[str]) -> list[Cell]:
    """The names of lines in their colours."""
    return [Cell(line, colour=colour) for line, colour in zip(lines, plots.colours(len(lines)), strict=True)]


def swept_axis(jobs: Sequence[Run]) -> str:
    """The key that a sweep is plotted against: one of numbers if there is one, and the seed only if nothing else is."""
    keys = jobs[0].swept
    numbers = [k for k in keys if k != "seed" and all(isinstance(job.swept_value(k), float) for job in jobs)]
    return [*numbers, *(k for k in keys if k != "seed"), *keys][0]
