"""The report's tables: texts, links and colours in rows; metrics as text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from avmae.viewing.plots import is_share, mean_and_std


@dataclass(frozen=True)
class Cell:
    """A text, and where it is more than that, what it links to, its colour, and whether it is the best of its kind."""

    text: str
    href: str = ""
    colour: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of as many cells as the header has texts; the first cell of a row names it."""

    header: list[str]
    rows: list[list[Cell]]

    def upright(self) -> "Table":
        """The table on its side if it has more columns than rows, so that it stays readable on narrow screens."""
        if len(self.header) <= len(self.rows) + 1:
            return self
        header = [self.header[0], *(row[0].text for row in self.rows)]
        rows = [[Cell(name), *(row[n] for row in self.rows)] for n, name in enumerate(self.header[1:], 1)]
        return Table(header, rows)


def results_table(names: Sequence[str], runs: Mapping[Cell, Mapping[str, float]]) -> Table:
    """A row for each run of one task; the best accuracies are marked.

    Losses are not: under another mask or with other targets they measure another task.

    Args:
        names: metrics in the order of their columns; those that no run has are left out.
        runs: metrics by name, by the cell that names the run.
    """
    names = [name for name in names if any(name in found for found in runs.values())]
    columns = []
    for name in names:
        values = [found.get(name) for found in runs.values()]
        known = {value for value in values if value is not None}
        best = max(known) if len(known) > 1 and is_share(name) else None
        columns.append([Cell("" if v is None else metric(name, v), best=v is not None and v == best) for v in values])
    return Table(["run", *names], [list(row) for row in zip(runs, *columns, strict=True)])


def metrics_table(first: str, found: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Numbers by row and name, with the mean of several checkpoints; what is no number is left out.

    Args:
        first: what a row is: `checkpoint` or `system`.
        found: values by name, by row.
    """
    names = list(dict.fromkeys(name for values in found.values() for name in values))
    numbers = {n: [v for values in found.values() if isinstance(v := values.get(n), int | float)] for n in names}
    names = [name for name in names if numbers[name]]
    if not names:
        return None
    rows = [
        [Cell(label), *(Cell(metric(n, v) if isinstance(v := values.get(n), int | float) else "–") for n in names)]
        for label, values in found.items()
    ]
    if first == "checkpoint" and len(rows) > 1:
        rows.append([Cell("mean ± std"), *(Cell(spread(n, numbers[n])) for n in names)])
    return Table([first, *names], rows).upright()


def study_table(metric_name: str, rows: Sequence[Mapping[str, Any]], clean: Sequence[Any]) -> Table:
    """Mean and standard deviation of each system under each degradation; the names in `clean` are of none."""
    systems = list(dict.fromkeys(str(row["system"]) for row in rows))
    places: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        untouched = row["degradation"] in clean
        place = ("clean", "") if untouched else (str(row["degradation"]), as_text(row["severity"]))
        places.setdefault(place, {}).setdefault(str(row["system"]), []).append(row["value"])
    cells = [
        [*map(Cell, place), *(Cell(spread(metric_name, found[x]) if x in found else "–") for x in systems)]
        for place, found in places.items()
    ]
    return Table(["degradation", "severity", *systems], cells)


def metric(name: str, value: float) -> str:
    """A metric's value as text: shares of 1 in percent, counts whole, others to four digits."""
    return f"{value:.1%}" if is_share(name) else str(value) if isinstance(value, int) else f"{value:#.4g}"


def spread(name: str, values: Sequence[float]) -> str:
    """Mean and sample standard deviation of a metric as text; of a single value, the value."""
    mean, std = mean_and_std(values)
    if std is None:
        return metric(name, mean)
    return f"{metric(name, mean)} ± {metric(name, std) if is_share(name) else format(std, '.2g')}"


def as_text(value: Any) -> str:
    """A setting as text: strings as they are, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
