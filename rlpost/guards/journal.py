"""What the guards remember of a run: its last steps, and the extremes of all of them."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Journal:
    """Metrics of the last `window` steps; each one's first `window` values, and its extremes.

    What is not finite counts for `now` alone. A resumed run reads its earlier steps back with
    `add`.
    """

    window: int
    early: dict[str, list[float]] = field(default_factory=dict)
    recent: deque[Mapping[str, float]] = field(init=False)
    low: dict[str, float] = field(default_factory=dict)
    high: dict[str, float] = field(default_factory=dict)
    best: Mapping[str, float] = field(default_factory=dict)
    num_steps: int = 0

    def __post_init__(self) -> None:
        self.recent = deque(maxlen=self.window)

    def add(self, values: Mapping[str, float | None]) -> None:
        """Remember one step; what is no number, as in a file of metrics, is left out."""
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
        for name, value in _finite(numbers).items():
            self.low[name] = min(self.low.get(name, value), value)
            self.high[name] = max(self.high.get(name, value), value)
            if len(first := self.early.setdefault(name, [])) < self.window:
                first.append(value)
        if "reward/mean" not in numbers:
            return  # an evaluation alone
        self.num_steps += 1
        self.recent.append(numbers)
        if numbers["reward/mean"] >= self.high.get("reward/mean", math.inf):
            self.best = numbers

    def now(self, name: str) -> float | None:
        """Return a metric of the last step."""
        return self.recent[-1].get(name) if self.recent else None

    def last(self, name: str, count: int) -> list[float]:
        """Return a metric's last `count` values, oldest first; none unless there are as many."""
        values = (step.get(name, math.nan) for step in self.recent)
        found = [value for value in values if math.isfinite(value)]
        return found[-count:] if len(found) >= count else []

    def varied(self, name: str, tolerance: float = 1e-9) -> bool:
        """Say whether a metric has ever changed."""
        return self.high.get(name, 0.0) - self.low.get(name, 0.0) > tolerance


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}
