"""What of a run has advanced last, and what is waited for, since when."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Something that has advanced, at a time of `Progress.now`."""

    what: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wait:
    """Something that is waited for; `limit_s` is how long at most."""

    part: str
    what: str
    since_s: float
    limit_s: float


@dataclass(slots=True, kw_only=True)
class Progress:
    """Notes of the driver for the watchdog, whose thread reads them at any time.

    Use: `mark("step 3 is recorded")` when something has advanced, `enter("learn")` as a phase
    begins, and `with waiting("rollout-0", "generate", limit_s): ...` around a wait. `now` returns
    seconds.
    """

    now: Callable[[], float] = time.monotonic
    last: Mark = field(init=False)
    phase: Mark = field(init=False)
    step: int = field(init=False, default=0)
    _waits: dict[int, Wait] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.last = self.phase = Mark(what="start", at_s=self.now())

    def mark(self, what: str) -> None:
        """Note that something has advanced."""
        self.last = Mark(what=what, at_s=self.now())

    def enter(self, phase: str) -> None:
        """Note that a phase begins."""
        self.phase = Mark(what=phase, at_s=self.now())
        self.mark(f"phase {phase} began")

    @contextmanager
    def waiting(
        self, part: str, what: str, limit_s: float, *, advances: bool = True
    ) -> Generator[None]:
        """Note a wait for a part of the run; that it ends well is progress if it `advances`."""
        wait = Wait(part=part, what=what, since_s=self.now(), limit_s=limit_s)
        self._waits[id(wait)] = wait
        try:
            yield
            if advances:
                self.mark(f"{part} finished {what}")
        finally:
            del self._waits[id(wait)]

    def waits(self) -> list[Wait]:
        """Return what is waited for now, the longest wait first."""
        return sorted(self._waits.copy().values(), key=lambda wait: wait.since_s)
