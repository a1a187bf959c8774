"""Numbers to figures for reports and papers: curves, dependences, confusion matrices, studies."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Of Okabe and Ito (2008), for all kinds of colour vision; its yellow is left out, for paper is white."""
MARKERS = "osD^vPX"
STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    # Names from outside are text, not formulas; and text stays text, in the page's own font.
    "text.parse_math": False,
    "svg.fonttype": "none",
}
CLEAN = ("clean", "none", None)
"""A study's names for no degradation."""
PANEL = (4.1, 2.6)
"""Inches; three panels fill a laptop's width, one a phone's."""
POINTS = 400
"""More than these are averaged in a curve; a panel is not wider than that in pixels."""


@dataclass(frozen=True)
class Curve:
    """What one run logged of one quantity.

    Args:
        colour: of the run.
        train: (step, value) pairs.
        val: the same on validation clips.
    """

    colour: str
    train: Sequence[tuple[float, float]]
    val: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Point:
    """One value that depends on something.

    Args:
        line: to which line it belongs; values of one line and place are replicates.
        place: what it depends on, a number or a name.
        value: itself.
        link: an address to go to from the point.
        colour: of the point; empty for its line's.
    """

    line: str
    place: float | str
    value: float
    link: str = ""
    colour: str = ""


def colours(count: int, ordered: bool = False) -> list[str]:
    """Colours for lines; from dark to bright where the lines have an order, or are more than can be told apart."""
    if ordered or count > len(PALETTE):
        return [to_hex(colormaps["viridis"](x)) for x in np.linspace(0, 0.87, count)]
    return list(PALETTE[:count])


def is_share(name: str) -> bool:
    """Whether a metric is a share of 1, by its name: accuracies, recalls, and waiting for data."""
    return re.search(r"(^|[/_])(top\d+|r\d+|accuracy|data_wait)$", name) is not None


def svg(figure: Figure) -> str:
    """A figure as an SVG element to be put into a page; all text in it is escaped."""
    stream = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = stream.getvalue()
    # Ids that nothing refers to repeat from figure to figure, and matplotlib's links open a new window.
    text = re.sub(r' (id="[A-Za-z.0-9]+_\d+"|target="_blank")', "", text[text.index("<svg") :])
    return re.sub(r" font-family: [^;\"]*;", "", text)


def write_png(figure: Figure, path: Path, dpi: int = 200) -> None:
    """Write a figure as PNG."""
    with rc_context(STYLE):
        figure.savefig(path, format="png", dpi=dpi)


def curves_figure(name: str, curves: Sequence[Curve]) -> Figure:
    """Curves over steps: training thin, validation with a marker at each value.

    Args:
        name: of the metric, without its part (`loss` of `train/loss`).
        curves: of the runs; each shows what it has.
    """
    with rc_context(STYLE):
        figure = Figure(PANEL, layout="constrained")
        axes = figure.add_subplot()
        both = any(curve.train for curve in curves) and any(curve.val for curve in curves)
        for curve in curves:
            if curve.train:
                axes.plot(*_thin(curve.train), color=curve.colour, linewidth=1, alpha=0.4 if both else 1)
            if curve.val:
                axes.plot(*_thin(curve.val), color=curve.colour, linewidth=1.4, marker="o", markersize=2.5)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        _value_axis(axes, name)
    return figure


def dependence_figure(
    points: Sequence[Point], xlabel: str, metric: str, labels: bool = False, lines: Sequence[str] | None = None
) -> Figure:
    """Values against what they depend on, a line each kind, with the standard deviation where there are replicates.

    Args:
        points: in any order.
        xlabel: what they depend on.
        metric: what they are of.
        labels: name the lines in the figure; where it is False, a page around it does.
        lines: of all figures that share a legend, which gives them their colours; None for those of the points.
    """
    with rc_context(STYLE):
        figure = Figure((PANEL[0], PANEL[1] + 0.4 * labels), layout="constrained")
        axes = figure.add_subplot()
        handles = _dependence(axes, points, lines)
        axes.set_xlabel(xlabel)
        axes.set_ylim(_limits(points))
        _value_axis(axes, metric)
        if labels:
            figure.legend(handles.values(), handles, loc="outside upper left", ncols=min(3, len(handles)), fontsize=8)
    return figure


def confusion_figure(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """A confusion matrix: a row for each true class, coloured by the share of its clips."""
    counts = np.asarray(confusion, float)
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    few = len(classes) <= 24
    cell, font = (0.34, 8) if few else (0.115, 5.5)
    names = [name if len(name) <= 28 else name[:27] + "…" for name in classes]
    side = cell * len(classes) + 0.075 * max(map(len, names)) * font / 9 + 0.5
    with rc_context(STYLE | {"axes.grid": False, "font.size": font}):
        figure = Figure((side, side), layout="constrained")
        axes = figure.add_subplot()
        # "none" keeps a pixel a class in the SVG, whatever its size on screen or paper.
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="none")
        places = np.arange(len(classes))
        axes.set_xticks(places, names, rotation=90)
        axes.set_yticks(places, names)
        axes.tick_params(length=0)
        axes.set_xlabel("predicted", fontsize=9)
        axes.set_ylabel("true", fontsize=9)
        for row, column in np.argwhere(counts) if few else ():
            ink = "white" if shares[row, column] > 0.55 else "#222222"
            text = f"{counts[row, column]:.0f}"
            axes.text(column, row, text, color=ink, ha="center", va="center", fontsize=7)
    return figure


def study_figure(
    rows: Sequence[Mapping[str, Any]],
    metric: str,
    degradations: Sequence[str] | None = None,
    labels: bool = True,
) -> Figure:
    """A metric against severity: a panel for each degradation, a line for each system, standard deviation over seeds.

    Rows of no degradation (`CLEAN`) are the start of every line; severities follow in the order of the rows. Systems
    under several conditions (any further key that varies, such as `split`) are lines of their own. All panels have one
    scale.

    Args:
        rows: of `study.json`: mappings with `system`, `seed`, `degradation`, `severity`, `metric` and `value`.
        metric: the rows to draw.
        degradations: the panels; None for all.
        labels: name panels and lines in the figure; where it is False, a page around it does.
    """
    points = study_points(rows, metric)
    chosen = list(points) if degradations is None else list(degradations)
    columns = min(3, len(chosen))
    height = -(-len(chosen) // columns)
    lines = list(dict.fromkeys(point.line for panel in points.values() for point in panel))
    with rc_context(STYLE):
        figure = Figure((PANEL[0] * columns, PANEL[1] * height + 0.3 * labels), layout="constrained")
        grid = figure.subplots(height, columns, squeeze=False)
        for axes in grid.flat[len(chosen) :]:
            axes.set_axis_off()
        handles: dict[str, Any] = {}
        for axes, name in zip(grid.flat, chosen, strict=False):
            handles |= _dependence(axes, points[name], lines)
            axes.set_title(name if labels else "", loc="left", fontweight="bold")
            axes.set_xlabel("severity" if name not in {point.place for point in points[name]} else "")
            _value_axis(axes, metric)
        for axes in grid.flat[: len(chosen)]:
            axes.set_ylim(_limits([point for panel in points.values() for point in panel]))
        if labels:
            figure.legend(handles.values(), handles, loc="outside upper left", ncols=min(4, len(handles)))
    return figure


def study_points(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, list[Point]]:
    """The points of each degradation's panel of `study_figure`."""
    rows = [row for row in rows if row["metric"] == metric]
    extra = [key for key in study_conditions(rows) if len({str(row.get(key)) for row in rows}) > 1]
    severities: dict[str, set[Any]] = {}
    for row in rows:
        severities.setdefault(str(row["degradation"]), set()).add(row["severity"])
    clean, panels = [], dict[str, list[Point]]()
    for row in rows:
        line = ", ".join([str(row["system"]), *(f"{key} {row.get(key)}" for key in extra)])
        if row["degradation"] in CLEAN:
            clean.append(Point(line, "clean", row["value"]))
        else:
            name, severity = str(row["degradation"]), row["severity"]
            # By name and in the rows' order, for the worst may be the smallest number, as of a signal-to-noise ratio.
            place = f"{severity:g}" if isinstance(severity, int | float) else str(severity)
            # Silence has no more and less.
            panels.setdefault(name, []).append(Point(line, name if severities[name] == {1} else place, row["value"]))
    return {name: [*clean, *points] for name, points in panels.items()} or {"clean": clean}


def study_conditions(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys of a study's rows that are neither its axes nor replicates: `split`, `condition`, `subset`, ..."""
    known = {"system", "seed", "fold", "degradation", "severity", "metric", "value"}
    return [key for key in dict.fromkeys(key for row in rows for key in row) if key not in known]


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None of a single value."""
    return mean(values), stdev(values) if len(values) > 1 else None


def _dependence(axes: Axes, points: Sequence[Point], lines: Sequence[str] | None = None) -> dict[str, Any]:
    lines = lines or list(dict.fromkeys(point.line for point in points))
    places = list(dict.fromkeys(point.place for point in points))
    numbers = all(isinstance(place, int | float) for place in places)
    handles = {}
    for number, (line, colour) in enumerate(zip(lines, colours(len(lines)), strict=True)):
        found = [point for point in points if point.line == line]
        at = {place: [p for p in found if p.place == place] for place in places}
        stats = [(x, *mean_and_std([p.value for p in group])) for x, group in at.items() if group]
        if numbers:
            stats.sort(key=lambda row: float(row[0]))
        x = np.array([row[0] if numbers else places.index(row[0]) for row in stats], float)
        y, spread = np.array([row[1] for row in stats]), np.array([row[2] or 0 for row in stats])
        style: dict[str, Any] = {"color": colour, "marker": MARKERS[number % len(MARKERS)], "markersize": 4}
        handles[line] = axes.errorbar(x, y, spread if spread.any() else None, capsize=2, linewidth=1.3, **style)
        dots = [(a, b, at[row[0]][0]) for a, b, row in zip(x, y, stats, strict=True)]
        if any(point.link for _, _, point in dots):
            marks = axes.scatter(x, y, s=40, color=[point.colour or colour for *_, point in dots], zorder=3)
            marks.set_urls([point.link for *_, point in dots])
    if not numbers:
        axes.set_xticks(range(len(places)), [str(place) for place in places])
    elif len(places) <= 8:
        axes.set_xticks(sorted(places), [f"{place:g}" for place in sorted(places)])
    return handles


def _limits(points: Sequence[Point]) -> tuple[float, float]:
    groups: dict[Any, list[float]] = {}
    for point in points:
        groups.setdefault((point.line, point.place), []).append(point.value)
    ends = [m + sign * (d or 0) for m, d in map(mean_and_std, groups.values()) for sign in (-1, 1)]
    # Differences of less than a few percent are not blown up to a whole panel.
    margin = max(0.07 * (max(ends) - min(ends)), 0.02 * max(map(abs, ends))) or 1.0
    return min(ends) - margin, max(ends) + margin


def _value_axis(axes: Axes, metric: str) -> None:
    axes.set_ylabel(metric)
    if is_share(metric):
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))


def _thin(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    size = -(-len(points) // POINTS)
    chunks = [points[i : i + size] for i in range(0, len(points), size)]
    return [mean(step for step, _ in chunk) for chunk in chunks], [mean(v for _, v in chunk) for chunk in chunks]
