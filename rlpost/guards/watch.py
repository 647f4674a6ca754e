"""The guards of one run: what they have seen, and what that does to it."""

import logging
from collections.abc import Mapping, Sequence

from rlpost.choices import Action
from rlpost.errors import GuardError
from rlpost.guards.disks import free_gib
from rlpost.guards.journal import Journal
from rlpost.guards.signs import GUARDS
from rlpost.schema import RunConfig

log = logging.getLogger(__name__)


class Guards:
    """Watches a run: warns once, and again after it had fallen silent; or stops the run.

    Use: `report(name, seen)` of what is seen before the run; after each step
    `values |= look(step, values)`, then `enforce()`. `ending` is set when the run is to end after a
    checkpoint, by whoever writes checkpoints.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.journal = Journal(window=max(config.guards.window, config.guards.steps))
        self.counts: dict[str, int] = {}
        self.ending: GuardError | None = None
        self._stopping: GuardError | None = None
        self._firing: set[str] = set()
        sampling = config.sampling
        if sampling.top_p < 1 or sampling.top_k > 0:
            self.report(
                "biased_sampling",
                f"sampling.top_p={sampling.top_p:g} and sampling.top_k={sampling.top_k} sample from"
                " another distribution than the learner's: ratios and gradients are biased, as "
                "sampling.allow_biased=true accepts; use top_p=1 and top_k=0",
            )

    def remember(self, history: Sequence[Mapping[str, float]]) -> None:
        """Take up what an earlier part of the run recorded, step by step."""
        for values in history:
            self.journal.add(values)
            told = {k.removeprefix("guards/"): v for k, v in values.items() if "guards/" in k}
            self.counts |= {name: int(count) for name, count in told.items()}

    def look(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Look at a step's metrics; return those to record beside them."""
        measured = free_gib(self.config)
        self.journal.add({**values, **measured})
        for name, guard in GUARDS.items():
            if self._action(name) is not Action.none:
                self.report(name, guard(self.journal, self.config), step)
        return measured | {f"guards/{name}": float(n) for name, n in self.counts.items()}

    def report(self, name: str, seen: str | None, step: int = 0) -> None:
        """Act on what a guard sees now: None if nothing."""
        action = self._action(name)
        if seen is None or action is Action.none:
            if name in self._firing:
                log.info("step %d: guard %s sees nothing any more", step, name)
            self._firing.discard(name)
            return
        self.counts[name] = self.counts.get(name, 0) + 1
        told = f"step {step}: guard {name}: {seen}"
        how = "stops the run" if action is Action.stop else "stops it after a checkpoint"
        error = GuardError(f"{told}. guards.{name}={action.value} {how}, warn would go on")
        if action is Action.stop:
            self._stopping = self._stopping or error
        elif action is Action.checkpoint:
            self.ending = self.ending or error
        if name not in self._firing:
            log.warning("%s", told)
        self._firing.add(name)

    def enforce(self) -> None:
        """Stop the run where a guard is to.

        Raises:
            GuardError: the guard, what it saw, and the remedy.
        """
        if self._stopping is not None:
            raise self._stopping

    def _action(self, name: str) -> Action:
        return getattr(self.config.guards, name)
