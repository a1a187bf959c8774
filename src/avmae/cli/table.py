"""Tables: on the terminal, and at the end of a sweep."""

import csv
import json
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from avmae.errors import printable


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print aligned columns."""
    cells = [[printable(cell, keep="") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    for row in (header, ["-" * width for width in widths], *cells):
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([row[0].ljust(len(first)), *rest]))


def print_tables(tables: Iterable[tuple[str, list[str], list[list[str]]]]) -> None:
    """Print tables below their titles."""
    for title, header, rows in tables:
        print(f"\n{title}")
        print_table(header, rows)


def bar(title: str, items: Iterable[Any], total: int) -> Iterable[Any]:
    """Show how far items are, on standard error; nothing where there are none."""
    # Here, for the help of the commands need not load it.
    from rich.console import Console
    from rich.progress import track

    rest = iter(items)
    first = list(islice(rest, 1))
    return chain(first, track(rest, title, total=total - 1, console=Console(stderr=True))) if first else []


class SweepTable(Callback):
    """Ends a multirun with one table over its jobs, on the terminal and in `sweep.csv`.

    It reads what the jobs left in their folders, for they may have run elsewhere.
    """

    _folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the folder: the end is not announced of a multirun that a failed job or a signal ends."""
        SweepTable._folder = Path(config.hydra.sweep.dir)

    @classmethod
    def finish(cls) -> None:
        """Print and write the table of the multirun that has ended, if there was one."""
        if cls._folder is None:
            return
        folder, cls._folder = cls._folder, None
        rows = []
        for summary in folder.glob("*/summary.json"):
            overrides: Any = OmegaConf.load(summary.parent / ".hydra" / "overrides.yaml")
            metrics = {k: f"{v:.4g}" for k, v in json.loads(summary.read_text()).items()}
            row = dict(override.lstrip("+").partition("=")[::2] for override in overrides)
            rows.append({"job": summary.parent.name, **row, **metrics})
        if not rows:
            return
        rows.sort(key=lambda row: (len(row["job"]), row["job"]))
        names = list(dict.fromkeys(name for row in rows for name in row))
        # What all jobs share, such as a long path, says nothing about the sweep.
        varied = [n for n in names if n == "job" or len({row.get(n, "") for row in rows}) > 1 or len(rows) == 1]
        print_table(varied, [[row.get(name, "") for name in varied] for row in rows])
        file = folder / "sweep.csv"
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, names)
            writer.writeheader()
            writer.writerows(rows)
        print(f"wrote {file}")
