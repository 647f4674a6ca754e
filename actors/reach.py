"""Whether the hosts of the learner ranks reach each other, by the network of their collectives."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

from actors.actor import Actor
from actors.doors import Address
from rlpost.errors import ActorError, LostError
from rlpost.stalls.stall import Section

log = logging.getLogger(__name__)

_LOOK_S = 10.0  # for a rank to try all doors
_POLL_S = 3.0
_MAX_TOLD = 8
_REMEDY = "mend the link or the firewall between them, or name another interface in ray.interface"


class Reach:
    """Ray and the driver may reach every host, and these not each other.

    Use: `Reach(actors, doors)` with what each has as its `open_door()`, `await wait(limit_s)`
    before the ranks meet and, when they have waited for each other in vain, `await broken()`.
    """

    def __init__(self, actors: Sequence[Actor], doors: Sequence[Address]) -> None:
        hosts: dict[str, tuple[Actor, Address]] = {}
        for actor, door in zip(actors, doors, strict=True):
            hosts.setdefault(door.host, (actor, door))
        self._doors = dict(hosts.values())  # one a host

    async def wait(self, limit_s: float) -> None:
        """Wait until every host reaches every other.

        Raises:
            LostError: a rank died meanwhile.
            ActorError: some do not in time; the message names both ends.
        """
        deadline = time.monotonic() + limit_s
        told = ""
        while True:
            answers = await self._ask()
            for answer in answers:
                if isinstance(answer, LostError):
                    raise answer
            if not (broken := self._told(answers)):
                return
            if time.monotonic() > deadline:
                raise ActorError(
                    f"learner ranks cannot work together, for learner.start_timeout_s={limit_s:g} "
                    f"s by now: {broken}"
                )
            if broken != told:
                log.warning("waiting for at most %g s: %s", limit_s, broken)
                told = broken
            await asyncio.sleep(_POLL_S)

    async def broken(self) -> str:
        """Say which hosts do not reach which, and what to do; nothing where all is well.

        A rank that does not answer says nothing of its links.
        """
        return self._told(await self._ask())

    async def _ask(self) -> list[Any]:
        """Have each host try the doors of all others; return what each found, or its error."""
        if len(self._doors) < 2:
            return []
        calls = (
            actor.aside("closed", [d for d in self._doors.values() if d != door], timeout_s=_LOOK_S)
            for actor, door in self._doors.items()
        )
        return await asyncio.gather(*calls, return_exceptions=True)

    def _told(self, answers: Sequence[Any]) -> str:
        names = {door: actor.name for actor, door in self._doors.items()}
        found = [
            f"{actor.name} ({door.host}, interface {door.interface or 'unknown'}) does not reach "
            f"{names[other]} ({other.host}, port {other.port}): {why}"
            for (actor, door), answer in zip(self._doors.items(), answers, strict=bool(answers))
            if not isinstance(answer, BaseException)
            for other, why in answer
        ]
        more = [f"and {len(found) - _MAX_TOLD} more"] if len(found) > _MAX_TOLD else []
        return "; ".join([*found[:_MAX_TOLD], *more, _REMEDY]) if found else ""

    def section(self, loop: asyncio.AbstractEventLoop) -> Section:
        """Tell the watchdog's thread."""
        broken = asyncio.run_coroutine_threadsafe(self.broken(), loop).result(2 * _LOOK_S)
        text = broken or f"{len(self._doors)} hosts with learner ranks: none misses another."
        return Section(text=text, summary=(broken,) if broken else ())
