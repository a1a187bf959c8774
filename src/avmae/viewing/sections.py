"""The report's sections: plots of several runs, what one run left behind, and tables."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avmae.evaluation.metrics import metric_text, spread_text
from avmae.runs.history import Run, read_reconstruction
from avmae.viewing import plots
from avmae.viewing.templates import data_address

TITLES = {
    "loss": "Loss",
    "loss_video": "Video loss",
    "loss_audio": "Audio loss",
    "loss_contrast": "Contrastive loss",
    "top1": "Top-1 accuracy",
    "mAP": "Mean average precision",
    "knn_top1": "k-NN accuracy",
    "effective_rank": "effective rank of the features",
    "lr": "Learning rate",
    "sound/top1": "Top-1 accuracy, clips with audio",
    "silent/top1": "Top-1 accuracy, silent clips",
    "grad_norm": "Gradient norm",
    "data_wait": "Share of time spent waiting for data",
    "clips_per_second": "Clips per second",
}
SHOWN = list(TITLES)[:9]
"""Curves shown at once, in this order; others are folded away."""
PARTS = {"train": "training", "val": "validation", "test": "test", "results": "avmae.evaluate"}


@dataclass(frozen=True)
class Cell:
    """A text, and where it is more than that, what it links to, its colour, and whether it is the best of its kind."""

    text: str
    href: str = ""
    colour: str = ""
    best: bool = False


Table = list[list[Cell]]
"""Rows of one length; the first is the header, and the first cell of a row names it."""


@dataclass(frozen=True)
class Plots:
    """Plots under one heading: SVG by title, a note on how to read them, more of them on demand, and as numbers."""

    title: str
    legend: list[Cell]
    panels: dict[str, str]
    note: str
    folded: dict[str, str] = field(default_factory=dict)
    table: Table = field(default_factory=list)


@dataclass(frozen=True)
class Evaluation:
    """What `avmae.evaluate` found, the confusion matrix as SVG.

    Of each class, best first: name, top-1, number of clips and what it is most often taken for.
    """

    metrics: Table
    classes: list[tuple[str, float, int, str]] = field(default_factory=list)
    confusion: str = ""


@dataclass(frozen=True)
class Shown:
    """A reconstruction: its clip, the settings of the mask, `data:` addresses, what was too large, and the metrics."""

    name: str
    mask: Mapping[str, Any]
    files: dict[str, str]
    notes: list[str]
    metrics: Table


@dataclass(frozen=True)
class RunSection:
    """One run: what lies in its folder, its section's `id`, its colour on the page, and what else is shown of it."""

    run: Run
    anchor: str
    colour: str
    evaluation: Evaluation | None
    reconstructions: list[Shown]
    left_out: int

    @property
    def link(self) -> Cell:
        """The run's name, in its colour, leading to its section."""
        return Cell(self.run.label, f"#{self.anchor}", self.colour)

    @property
    def task(self) -> str:
        return {"pretrain": "Pretraining", "classify": "Classification", "tag": "Tagging"}.get(
            self.run.task, self.run.task
        )

    @property
    def metrics(self) -> dict[str, str]:
        """The final ones, but for those of `avmae.evaluate`."""
        found = sorted(self.run.final.items())
        return {name: metric_text(name, value) for name, value in found if not name.startswith("results/")}


def sweep_plots(sections: Sequence[RunSection], names: Sequence[str]) -> Plots:
    """Final metrics of a sweep's jobs against the swept key; further keys make lines, seeds are averaged over."""
    swept, axis = sections[0].run.swept, swept_axis([s.run for s in sections])
    kinds = [key for key in swept if key not in (axis, "seed")]
    names = [name for name in names if sum(name in s.run.final for s in sections) > 1]
    if "val/loss" in names:
        names = [name for name in names if name != "train/loss"]
    line_of = [", ".join(f"{key}={s.run.overrides.get(key, 'default')}" for key in kinds) for s in sections]
    lines = list(dict.fromkeys(line_of))
    panels = {}
    for name in names:
        points = [
            plots.Point(line, s.run.swept_value(axis), s.run.final[name], s.link.href, "" if kinds else s.colour)
            for s, line in zip(sections, line_of, strict=True)
            if name in s.run.final
        ]
        part, _, rest = name.partition("/")
        title = f"{TITLES.get(rest, rest)}, {PARTS.get(part, part)}"
        panels[title] = plots.svg(plots.dependence_figure(points, axis, name, lines=lines))
    note = "Each point is a job and links to its section."
    if "seed" in swept and axis != "seed":
        note += " Mean and sample standard deviation over seeds."
    if axis.startswith("mask."):
        note += " Losses are over masked patches: under other masks they measure another task, so compare accuracies."
    return Plots(f"Results against {axis}", legend(lines) if kinds else [], panels, note)


def curve_plots(sections: Sequence[RunSection], named: bool) -> Plots:
    """Curves of the runs of one task, one plot for each quantity; with a legend if the runs are to be named."""
    runs = [(section.colour, section.run.curves) for section in sections]
    logged = {name.partition("/")[2] for _, curves in runs for name in curves if name.startswith(("train/", "val/"))}
    names = [name for name in SHOWN if name in logged] + sorted(logged.difference(SHOWN))
    panels = {name: plots.svg(plots.curves_figure(name, runs)) for name in names}
    note = "Where both are known, thin lines are training and lines with dots are validation."
    averaged = -(-max(len(points) for _, curves in runs for points in curves.values()) // plots.POINTS)
    if averaged > 1:
        note += f" Lines show means over up to {averaged} logged values."
    return Plots(
        f"{sections[0].task} curves",
        [section.link for section in sections] if named else [],
        {TITLES[name]: panel for name, panel in panels.items() if name in SHOWN},
        note,
        {TITLES.get(name, name): panel for name, panel in panels.items() if name not in SHOWN},
    )


def study_plots(rows: Sequence[Mapping[str, Any]]) -> list[Plots]:
    """Each metric of a study under each of its conditions."""
    keys, parts = plots.study_conditions(rows), dict[tuple[Any, ...], list[Mapping[str, Any]]]()
    for row in rows:
        parts.setdefault((row["metric"], *(row.get(key) for key in keys)), []).append(row)
    sections = []
    for (name, *values), chosen in parts.items():
        conditions = [f"{key} {value}" for key, value in zip(keys, values, strict=True) if value is not None]
        systems = list(dict.fromkeys(str(row["system"]) for row in chosen))
        found = plots.study_points(chosen, name)
        how: dict[str, Any] = {"lines": systems, "scale": [point for points in found.values() for point in points]}
        panels = {
            kind: plots.svg(plots.dependence_figure(points, plots.severity_label(kind, points), name, **how))
            for kind, points in found.items()
        }
        note = "Means, and sample standard deviations where there are several seeds."
        title = f"Study: {', '.join([name, *conditions])}"
        sections.append(Plots(title, legend(systems), panels, note, table=study_table(name, found)))
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
        counts = np.sum([part["confusion"] for part in parts], axis=0)
        classes = []
        for label, (name, row) in enumerate(zip(names, counts, strict=True)):
            wrong = np.where(np.arange(len(row)) == label, 0, row)
            if clips := row.sum():
                count, other = max((count, n) for n, count in enumerate(wrong))
                taken = f"{count} as {names[other]}" if count else ""
                classes.append((name, row[label] / clips, clips, taken))
        classes.sort(key=lambda found: -found[1])
        return Evaluation(metrics, classes, plots.svg(plots.confusion_figure(counts, names)))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        run.notes.append(f"results.json is not what avmae.evaluate writes ({type(error).__name__}: {error})")
        return None


def reconstruction(folder: Path, embed_mb: float) -> Shown:
    """What `avmae.reconstruct` or a pretraining wrote to a folder, files up to a size in MB embedded."""
    content, epoch = read_reconstruction(folder), epoch_of(folder)
    files, notes = {}, []
    for kind in ("video/mp4", "image/png"):
        file = folder / f"reconstruction.{kind[-3:]}"
        size = file.stat().st_size / 1e6 if file.is_file() else 0
        if size > embed_mb:
            notes.append(f"{file} has {size:.1f} MB and was left out; embed_mb={size + 1:.0f} includes it")
        elif size:
            files[kind] = data_address(kind, file.read_bytes())
    name = Path(content["input"]).name + (f", epoch {epoch}" if epoch >= 0 else "")
    return Shown(name, content["mask"], files, notes, metrics_table("system", content["systems"]))


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


def table(first: str, rows: Mapping[Cell, Mapping[str, Cell]], names: Sequence[str] = ()) -> Table:
    """What `rows`, which are a `first` each, have under each of these or all names; on its side if wider than high."""
    columns = list(names or dict.fromkeys(n for row in rows.values() for n in row))
    content = [[Cell(first), *map(Cell, columns)]]
    content += [[label, *(row.get(name, Cell("–")) for name in columns)] for label, row in rows.items()]
    return list(map(list, zip(*content, strict=True))) if len(columns) > len(rows) else content


def metrics_table(first: str, found: Mapping[str, Mapping[str, Any]]) -> Table:
    """The numbers of each checkpoint or system (`first`), and the mean of several checkpoints."""
    numbers = {x: {n: v for n, v in values.items() if isinstance(v, int | float)} for x, values in found.items()}
    rows = {Cell(x): {n: Cell(metric_text(n, v)) for n, v in values.items()} for x, values in numbers.items()}
    if first == "checkpoint" and len(rows) > 1:
        names = dict.fromkeys(name for values in numbers.values() for name in values)
        all_of = {name: [values[name] for values in numbers.values() if name in values] for name in names}
        rows[Cell("mean ± std")] = {name: Cell(spread_text(name, values)) for name, values in all_of.items()}
    return table(first, rows) if any(numbers.values()) else []


def study_table(metric: str, panels: Mapping[str, Sequence[plots.Point]]) -> Table:
    """Mean and standard deviation of each system under each degradation."""
    values: dict[Cell, dict[str, list[float]]] = {}
    for number, (kind, points) in enumerate(panels.items()):
        for point in points:
            # Every panel begins with the clean clips.
            if number == 0 or point.place != "clean":
                place = Cell(f"{kind} {point.place}" if point.place not in ("clean", kind) else str(point.place))
                values.setdefault(place, {}).setdefault(point.line, []).append(point.value)
    found = {place: {x: Cell(spread_text(metric, v)) for x, v in row.items()} for place, row in values.items()}
    return table("degradation", found)
