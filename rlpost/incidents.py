"""The losses of a run: kept in a file, and counted against what the recipe allows."""

import json
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rlpost.errors import ActorError
from rlpost.schema import SupervisionConfig

log = logging.getLogger(__name__)

FILE = "incidents.jsonl"
_TOLD = 5  # of the incidents before, in the last message of a run


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """An actor that was lost: when on `clock`, who, and why."""

    at_s: float
    actor: str
    cause: str


class Incidents:
    """Notes which actors were lost and which came back.

    Use: `note(actor, cause)` for each loss, `ended(actor)` when its work is done again.
    `num_losses` counts those of the whole run.
    """

    def __init__(
        self,
        rules: SupervisionConfig,
        folder: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rules = rules
        self.folder = folder
        self.num_losses = 0
        self._clock = clock
        self._recent: deque[Incident] = deque()
        self._lost_at: dict[str, float] = {}

    def note(self, actor: str, cause: str) -> None:
        """Note a loss.

        Raises:
            ActorError: it is one more than the recipe allows in a window of time.
        """
        now = self._clock()
        self.num_losses += 1
        self._lost_at.setdefault(actor, now)
        self._recent.append(Incident(at_s=now, actor=actor, cause=cause))
        while self._recent[0].at_s < now - self.rules.window_s:
            self._recent.popleft()
        self._keep({"event": "lost", "actor": actor, "cause": cause})
        if len(self._recent) > self.rules.max_restarts:
            raise ActorError(self._history(now))
        log.warning("%s (loss %d of this run): replacing %s", cause, self.num_losses, actor)

    def leaves(self, actor: str, cause: str) -> None:
        """Note that an actor has been asked to go, which is no loss."""
        self._lost_at.setdefault(actor, self._clock())
        self._keep({"event": "leaves", "actor": actor, "cause": cause})
        log.warning("%s: %s begins elsewhere when there is room", cause, actor)

    def away_s(self, actor: str) -> float | None:
        """Return for how long an actor has been lost, None if it is not."""
        lost_at = self._lost_at.get(actor)
        return None if lost_at is None else self._clock() - lost_at

    def ended(self, actor: str) -> None:
        """Note that the work of an actor is done again, if it was lost."""
        after_s = self.away_s(actor)
        if after_s is not None:
            del self._lost_at[actor]
            self._keep({"event": "back", "actor": actor, "after_s": round(after_s, 3)})
            log.warning("%s is back after %.1f s", actor, after_s)

    def _history(self, now: float) -> str:
        rules = self.rules
        last = list(self._recent)[-_TOLD:]
        lines = [f"  {now - one.at_s:.0f} s ago: {one.cause}" for one in last]
        return (
            f"{len(self._recent)} actors were lost within supervision.window_s={rules.window_s:g} "
            f"s, and supervision.max_restarts={rules.max_restarts} may be: the run stops. All are "
            f"in {self.folder / FILE}; the last:\n" + "\n".join(lines) + "\nmend the cause and "
            "continue with resume=auto, or raise supervision.max_restarts"
        )

    def _keep(self, event: dict[str, str | float]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"unix_s": round(time.time(), 3), **event}) + "\n")
