"""Metrics as text, the same in reports and on the terminal: shares of 1 in percent, means over seeds or folds."""

import re
from collections.abc import Sequence
from math import comb
from statistics import mean, stdev


def is_share(name: str) -> bool:
    """Whether a metric is a share of 1, by its name: accuracies, recalls, average precision, and waiting for data."""
    return re.search(r"(^|[/_])(top\d+|r\d+|accuracy|data_wait|mAP|AP)$", name) is not None


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None of a single value."""
    return mean(values), stdev(values) if len(values) > 1 else None


def metric_text(name: str, value: float) -> str:
    """Shares in percent, counts whole, others to four digits."""
    return f"{value:.1%}" if is_share(name) else str(value) if isinstance(value, int) else f"{value:#.4g}"


def spread_text(name: str, values: Sequence[float]) -> str:
    """Mean and sample standard deviation; of a single value, the value."""
    middle, std = mean_and_std(values)
    if std is None:
        return metric_text(name, middle)
    return f"{metric_text(name, middle)} ± {metric_text(name, std) if is_share(name) else format(std, '.2g')}"


def sign_test(first: int, second: int) -> float:
    """Two-sided p of so many cases for either side, if both were equally likely (McNemar's exact test)."""
    cases, fewer = first + second, min(first, second)
    return min(1.0, 2 * sum(comb(cases, k) for k in range(fewer + 1)) / 2**cases)
