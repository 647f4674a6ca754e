"""Where a step's wall time went: named phases that sum to it."""

import asyncio
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

OTHER = "other"


def clock() -> Callable[[], float]:
    """Return the running event loop's clock in seconds, which a simulation's loop moves on itself.

    Outside a loop it is the machine's.
    """
    try:
        return asyncio.get_running_loop().time
    except RuntimeError:
        return time.perf_counter


class PhaseTimer:
    """Splits the time since its creation into phases; `other` is what no phase claimed.

    Use: `with timer.phase("rollout"): ...`, then `timer.values()`. A phase inside another stops
    the outer one's clock, and a name used twice adds up, so that the phases never overlap.
    """

    def __init__(self, now: Callable[[], float] | None = None) -> None:
        """`now` returns seconds; without it the clock is that of the running event loop."""
        self._clock = now or clock()
        self._start = self._since = self._clock()
        self._open = [OTHER]
        self._seconds: dict[str, float] = {OTHER: 0.0}

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """Count the time inside the block as `name`, also when it raises."""
        self._settle()
        self._open.append(name)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def values(self) -> dict[str, float]:
        """Return `time/<phase>_s` of every phase so far and their sum, `time/step_s`."""
        self._settle()
        phases = {f"time/{name}_s": seconds for name, seconds in self._seconds.items()}
        return {**phases, "time/step_s": self._since - self._start}

    def _settle(self) -> None:
        """Give the time since the last change of phase to the phase that is open."""
        now = self._clock()
        name = self._open[-1]
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._since
        self._since = now
