"""Metrics that merge: a mean keeps its total and count, a maximum its largest value."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self


@dataclass(slots=True)
class Metrics:
    """Named means, maxima and sums that add up over micro-batches and ranks.

    Use: `m.mean("policy/entropy", total, count)`, `m.maximum("policy/ratio_max", 1.3)`,
    `m.sum("tokens/trained", 128)`, `m.merge(other)`, then `m.values()`.
    """

    means: dict[str, tuple[float, float]] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)

    def mean(self, name: str, total: float, count: float) -> None:
        """Add `count` observations that sum to `total`."""
        old_total, old_count = self.means.get(name, (0.0, 0.0))
        self.means[name] = (old_total + float(total), old_count + float(count))

    def maximum(self, name: str, value: float) -> None:
        """Keep the largest value seen."""
        self.maxima[name] = max(self.maxima.get(name, float("-inf")), float(value))

    def sum(self, name: str, value: float) -> None:
        """Add to a sum."""
        self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def merge(self, other: Self) -> Self:
        """Add another set of observations to this one and return this one."""
        for name, (total, count) in other.means.items():
            self.mean(name, total, count)
        for name, value in other.maxima.items():
            self.maximum(name, value)
        for name, value in other.sums.items():
            self.sum(name, value)
        return self

    def values(self) -> dict[str, float]:
        """Return one number a name; a mean without observations is left out."""
        means = {name: total / count for name, (total, count) in self.means.items() if count}
        return {**means, **self.maxima, **self.sums}


def merged(parts: Iterable[Metrics]) -> Metrics:
    """Return the sum of several sets of observations."""
    total = Metrics()
    for part in parts:
        total.merge(part)
    return total


def prefixed(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    """Return the same values under `prefix/name`."""
    return {f"{prefix}/{name}": value for name, value in values.items()}
