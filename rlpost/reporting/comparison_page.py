"""The page of a comparison: a table with confidence intervals, pictures, and all numbers."""

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlpost.atomic import write_text
from rlpost.errors import DataError
from rlpost.reporting.comparison import Comparison, read_metrics
from rlpost.schema import RunConfig

CONFIDENCE = 0.95
ACCURACY = "held-out accuracy"
CURVES = {
    ACCURACY: "eval/",
    "reward": "reward/mean",
    "gradient norm / M(1)": "policy/grad_norm_scaled",
    "entropy (nats)": "policy/entropy",
    "largest ratio": "policy/ratio_max",
    "share of controlled tokens": "policy/ratio_controlled_frac",
}


@dataclass(frozen=True, slots=True)
class Curve:
    """A metric over steps: `values[seed, step]`."""

    steps: np.ndarray
    values: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """The mean over seeds, at each step."""
        return self.values.mean(0)

    @property
    def half_width(self) -> np.ndarray:
        """The half-width of the mean's confidence interval, at each step."""
        return half_width(self.values)

    @property
    def last(self) -> np.ndarray:
        """Each seed's last value."""
        return self.values[:, -1]


Curves = Mapping[str, Curve]  # by title


def curves(comparison: Comparison) -> dict[str, Curves]:
    """Return each label's curves.

    Raises:
        DataError: runs of one label recorded different steps, or a metric is not there.
    """
    found: dict[str, Curves] = {}
    for label in comparison.labels:
        runs = [
            read_metrics(comparison.run_dir(label, seed)) for seed in range(comparison.num_seeds)
        ]
        found[label] = {title: _curve(label, runs, name) for title, name in CURVES.items()}
    return found


def _curve(label: str, runs: Sequence[Sequence[Mapping[str, Any]]], name: str) -> Curve:
    series = [dict(_values(lines, name)) for lines in runs]
    steps = sorted(series[0])
    if any(sorted(one) != steps for one in series):
        raise DataError(f"{label}: its seeds recorded {name} at different steps: run them again")
    if not steps:
        raise DataError(f"{label}: no step recorded {name}; held-out accuracy needs eval.every > 0")
    values = np.array([[one[step] for step in steps] for one in series], dtype=float)
    return Curve(np.array(steps), values)


def _values(lines: Sequence[Mapping[str, Any]], name: str) -> Iterator[tuple[int, float]]:
    for line in lines:
        key = name
        if name.endswith("/"):
            key = next((k for k in line if k.startswith(name) and k.endswith("pass@1")), name)
        if key in line:
            value = line[key]
            yield line["step"], math.nan if value is None else value


def half_width(values: np.ndarray) -> np.ndarray:
    """Return the half-width of the mean's confidence interval over axis 0, by Student's t.

    One seed has none: NaN.
    """
    from scipy.special import stdtrit  # Student's quantile; scipy.stats takes seconds to import

    count = len(values)
    if count < 2:
        return np.full(values.shape[1:], np.nan)
    quantile = stdtrit(count - 1, (1 + CONFIDENCE) / 2)
    return quantile * values.std(0, ddof=1) / math.sqrt(count)


def _with_interval(values: np.ndarray, form: str) -> str:
    """Return the mean of some seeds' values and its interval as text."""
    half = float(half_width(values))
    return f"{values.mean():{form}}" + ("" if math.isnan(half) else f" ± {half:{form.lstrip('+')}}")


def _difference(of: Curves, first: Curves) -> str:
    if of is first:
        return ""
    return _with_interval(of[ACCURACY].last - first[ACCURACY].last, "+.1%")


COLUMNS: dict[str, Callable[[Curves, Curves], str]] = {
    f"{ACCURACY}, last": lambda of, _: _with_interval(of[ACCURACY].last, ".1%"),
    "less that of {first}": _difference,
    f"{ACCURACY}, best step": lambda of, _: f"{of[ACCURACY].mean.max():.1%}",
    "reward, last": lambda of, _: _with_interval(of["reward"].last, ".3f"),
    "gradient norm / M(1), largest": lambda of, _: f"{of['gradient norm / M(1)'].mean.max():.3g}",
    "entropy, last": lambda of, _: _with_interval(of["entropy (nats)"].last, ".3f"),
    "ratio, largest": lambda of, _: f"{of['largest ratio'].mean.max():.3g}",
    "controlled tokens": lambda of, _: f"{of['share of controlled tokens'].mean.mean():.1%}",
}
"""Cells of the table, from a label's curves and the first label's."""


def write_page(comparison: Comparison, config: RunConfig, command: str) -> Path:
    """Write `index.md`, `curves` and `accuracy` as SVG and PNG, `curves.csv`; return the page."""
    from rlpost.reporting.plots import plot_accuracy, plot_curves

    found = curves(comparison)
    plot_curves(found, comparison.folder)
    plot_accuracy(
        {label: by_title[ACCURACY] for label, by_title in found.items()}, comparison.folder
    )
    write_text(comparison.folder / "curves.csv", _as_csv(found))
    samples = config.steps * config.prompts_per_step * config.group_size
    first, *others = comparison.labels
    starts = [by_title[ACCURACY].values[:, 0] for by_title in found.values()]
    lines = [
        f"# {config.task.name}: {first} and {len(others)} others" if others else f"# {first}",
        "",
        (
            f"{comparison.num_seeds} seeds each, {config.steps} steps of {config.prompts_per_step} "
            f"prompts x {config.group_size} = {samples} samples a run, "
            f"{config.epochs * config.minibatches} updates a step at a learning rate of "
            f"{config.learner.learning_rate:g}. Held-out accuracy at the start: "
            f"{np.mean(starts):.1%}. Means over seeds ± {CONFIDENCE:.0%} confidence interval "
            "(Student's t); differences are paired by seed. All numbers are in "
            "[curves.csv](curves.csv). Written by"
        ),
        "",
        f"    {command}",
        "",
        "![accuracy](accuracy.svg)",
        "",
        f"| objective | {' | '.join(COLUMNS).format(first=first)} |",
        f"| --- |{' --- |' * len(COLUMNS)}",
    ]
    for label, by_title in found.items():
        cells = [cell(by_title, found[first]) for cell in COLUMNS.values()]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += ["", "![curves](curves.svg)"]
    page = comparison.folder / "index.md"
    write_text(page, "\n".join(lines) + "\n")
    return page


def _as_csv(found: Mapping[str, Curves]) -> str:
    """Return every seed's every value: a row a step, a column a metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("objective", "seed", "step", *CURVES))
    for label, by_title in found.items():
        recorded = {
            (seed, step, title): f"{value:.6g}"
            for title, curve in by_title.items()
            for seed, row in enumerate(curve.values)
            for step, value in zip(curve.steps.tolist(), row, strict=True)
        }
        for seed, step in sorted({key[:2] for key in recorded}):
            cells = (recorded.get((seed, step, title), "") for title in CURVES)
            writer.writerow((label, seed, step, *cells))
    return text.getvalue()
