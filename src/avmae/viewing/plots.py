"""Numbers to figures for reports and papers: curves, dependences, confusion matrices, studies."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from avmae.evaluation.metrics import is_share, mean_and_std

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Of Okabe and Ito (2008), for all kinds of colour vision; its yellow is left out, for paper is white."""
MARKERS = "osD^vPX"
STYLE = Path(__file__).with_name("figures.mplstyle")
CLEAN = ("clean", "none", None)
"""A study's names for no degradation."""
PANEL = (4.1, 2.6)
"""Inches; three panels fill a laptop's width, one a phone's."""
POINTS = 400
"""More than these are averaged in a curve; a panel is not wider than that in pixels."""


@dataclass(frozen=True)
class Point:
    """One value that depends on something.

    Args:
        line: to which line it belongs; values of one line and place are replicates.
        place: what it depends on, a number or a name.
        link: an address to go to from the point.
        colour: empty for its line's.
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


@rc_context(fname=STYLE)
def svg(figure: Figure) -> str:
    """A figure as an SVG element to be put into a page; all text in it is escaped."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = stream.getvalue()
    # Ids that nothing refers to repeat from figure to figure, and matplotlib's links open a new window.
    text = re.sub(r' (id="[A-Za-z.0-9]+_\d+"|target="_blank")', "", text[text.index("<svg") :])
    return re.sub(r" font-family: [^;\"]*;", "", text)


@rc_context(fname=STYLE)
def write_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    figure.savefig(path, format="png", dpi=200)


@rc_context(fname=STYLE)
def curves_figure(name: str, runs: Sequence[tuple[str, Mapping[str, Sequence[tuple[float, float]]]]]) -> Figure:
    """Curves of a metric (`loss` for `train/loss`) over steps: training thin, validation with a marker at each value.

    Of each run come its colour and its (step, value) pairs by metric.
    """
    figure = Figure(PANEL, layout="constrained")
    axes = figure.add_subplot()
    both = all(any(curves.get(f"{part}/{name}") for _, curves in runs) for part in ("train", "val"))
    for colour, curves in runs:
        if points := curves.get(f"train/{name}"):
            axes.plot(*_thinned(points), color=colour, linewidth=1, alpha=0.4 if both else 1)
        if points := curves.get(f"val/{name}"):
            axes.plot(*_thinned(points), color=colour, linewidth=1.4, marker="o", markersize=2.5)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _value_axis(axes, name)
    return figure


@rc_context(fname=STYLE)
def dependence_figure(
    points: Sequence[Point],
    xlabel: str,
    metric: str,
    labels: bool = False,
    lines: Sequence[str] = (),
    scale: Sequence[Point] = (),
) -> Figure:
    """Values against what they depend on, a line each kind, with the standard deviation where there are replicates.

    Args:
        points: in any order.
        xlabel: what they depend on.
        metric: what they are of.
        labels: name the lines in the figure; where it is False, a page around it does.
        lines: of all figures that share a legend, which gives them their colours; of the points if empty.
        scale: the points of all figures that share a scale; these alone if empty.
    """
    figure = Figure((PANEL[0], PANEL[1] + 0.4 * labels), layout="constrained")
    axes = figure.add_subplot()
    handles = _draw(axes, points, metric, lines or list(dict.fromkeys(point.line for point in points)), scale or points)
    axes.set_xlabel(xlabel)
    if labels:
        figure.legend(handles.values(), handles, loc="outside upper left", ncols=min(3, len(handles)), fontsize=8)
    return figure


@rc_context(fname=STYLE)
def confusion_figure(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """A confusion matrix: a row for each true class, coloured by the share of its clips."""
    counts = np.asarray(confusion, float)
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    few = len(classes) <= 24
    cell, font = (0.34, 8) if few else (0.115, 5.5)
    names = [name if len(name) <= 28 else name[:27] + "…" for name in classes]
    side = cell * len(classes) + 0.075 * max(map(len, names)) * font / 9 + 0.5
    figure = Figure((side, side), layout="constrained")
    axes = figure.add_subplot()
    # "none" keeps a pixel a class in the SVG, whatever its size on screen or paper.
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="none")
    places = np.arange(len(classes))
    axes.set_xticks(places, names, rotation=90)
    axes.set_yticks(places, names)
    axes.tick_params(length=0, labelsize=font)
    axes.grid(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for row, column in np.argwhere(counts) if few else ():
        ink = "white" if shares[row, column] > 0.55 else "#222222"
        text = f"{counts[row, column]:.0f}"
        axes.text(column, row, text, color=ink, ha="center", va="center", fontsize=7)
    return figure


@rc_context(fname=STYLE)
def study_figure(rows: Sequence[Mapping[str, Any]], metric: str) -> Figure:
    """A metric against severity: a panel for each degradation, a line for each system, standard deviation over seeds.

    Rows of no degradation (`CLEAN`) are the start of every line; severities follow in the order of the rows. Systems
    under several conditions (any further key that varies, such as `split`) are lines of their own. All panels have one
    scale.

    Args:
        rows: of `study.json`: mappings with `system`, `seed`, `degradation`, `severity`, `metric` and `value`.
        metric: the rows to draw.
    """
    panels = study_points(rows, metric)
    points = [point for panel in panels.values() for point in panel]
    lines = list(dict.fromkeys(point.line for point in points))
    columns = min(3, len(panels))
    height = -(-len(panels) // columns)
    figure = Figure((PANEL[0] * columns, PANEL[1] * height + 0.3), layout="constrained")
    grid = figure.subplots(height, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    handles: dict[str, Any] = {}
    for axes, (name, panel) in zip(grid.flat, panels.items(), strict=False):
        handles = _draw(axes, panel, metric, lines, points)
        axes.set_title(name, loc="left", fontweight="bold")
        axes.set_xlabel(severity_label(name, panel))
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


def severity_label(degradation: str, points: Sequence[Point]) -> str:
    """What the places of a degradation's points are; nothing where it has no severities."""
    return "" if degradation in {point.place for point in points} else "severity"


def _draw(
    axes: Axes, points: Sequence[Point], metric: str, lines: Sequence[str], scale: Sequence[Point]
) -> dict[str, Any]:
    """Draw points on a scale that fits others, too; returns what the legend shows of each line."""
    places: list[Any] = list(dict.fromkeys(point.place for point in points))
    numbers = all(isinstance(place, int | float) for place in places)
    places = sorted(places) if numbers else places
    handles = {}
    for line, colour, marker in zip(lines, colours(len(lines)), cycle(MARKERS), strict=False):
        found = {place: [p for p in points if (p.line, p.place) == (line, place)] for place in places}
        first = [group[0] for group in found.values() if group]
        stats = [mean_and_std([point.value for point in group]) for group in found.values() if group]
        x = [point.place if numbers else places.index(point.place) for point in first]
        y, spread = [value for value, _ in stats], [std or 0 for _, std in stats]
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4}
        handles[line] = axes.errorbar(x, y, spread if any(spread) else None, capsize=2, linewidth=1.3, **style)
        if any(point.link for point in first):
            marks = axes.scatter(x, y, s=40, color=[point.colour or colour for point in first], zorder=3)
            marks.set_urls([point.link for point in first])
    if not numbers:
        axes.set_xticks(range(len(places)), map(str, places))
    elif len(places) <= 8:
        axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.set_ylim(_limits(scale))
    _value_axis(axes, metric)
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


def _thinned(points: Sequence[tuple[float, float]]) -> np.ndarray:
    """Steps and values (2, n), each the mean of as many neighbours as leave at most `POINTS`."""
    size = -(-len(points) // POINTS)
    return np.array([np.mean(points[i : i + size], axis=0) for i in range(0, len(points), size)]).T
