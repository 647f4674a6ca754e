"""The actors of one role: requests go to those that serve, and those that are lost are replaced."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from actors.actor import Actor
from actors.alarm import Alarm
from actors.heartbeat import Heartbeat
from rlpost.errors import ActorError, DeadlineError, LostError, RlpostError
from rlpost.incidents import Incidents
from rlpost.scheduling import Loads

log = logging.getLogger(__name__)

Begin = Callable[[Actor], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Care:
    """What looks after the actors of all crews.

    `renew` puts a new process in an actor's place, `settled` waits until the cluster has room for
    it; losses are noted in `incidents`; `alarm` ends the run when there were too many.
    """

    renew: Begin
    settled: Begin
    incidents: Incidents
    alarm: Alarm
    heartbeat: Heartbeat


class Crew:
    """Spreads requests over the actors of one role, and keeps the role at strength.

    A request whose actor is lost goes to another one. Meanwhile the lost one is replaced by an
    actor of the same name. An actor is given requests once it has begun, or, if `proves`, once
    `serve` says that it has what it needs to serve.

    Use: `await start(begin)`, any number of overlapping `call(...)`, `await close()`.
    """

    def __init__(
        self,
        role: str,
        actors: Sequence[Actor],
        care: Care,
        patience_s: float,
        *,
        proves: bool,
        num_needed: int | None = None,
    ) -> None:
        """`patience_s` is for how long a request waits until one of the actors serves.

        The first `num_needed` actors, else all, must have begun before there is a crew; the others
        join it when the cluster has room.
        """
        self.role = role
        self.num_needed = len(actors) if num_needed is None else num_needed
        self.actors = list(actors)
        self.care = care
        self.patience_s = patience_s
        self.proves = proves
        self.on_arrival: Callable[[], Awaitable[None]] | None = None  # brings what it is to prove
        self._begin: Begin
        self._positions = {actor: index for index, actor in enumerate(self.actors)}
        self._loads = Loads(len(self.actors))
        for index in range(len(self.actors)):
            self._loads.leave(index)
        self._replacing: dict[int, asyncio.Task[None]] = {}
        self._welcomes: set[asyncio.Task[None]] = set()
        self._arrival = asyncio.Event()
        self._ended = asyncio.Event()

    async def start(self, begin: Begin) -> None:
        """Have every actor that is needed begin, those that are lost in it once more.

        Raises:
            RlpostError: one cannot begin.
        """
        self._begin = begin
        for index in range(self.num_needed, len(self.actors)):
            self._replacing[index] = asyncio.ensure_future(self._bring(index, anew=False))
        tasks = [asyncio.ensure_future(self._start(index)) for index in range(self.num_needed)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _start(self, index: int) -> None:
        actor = self.actors[index]
        try:
            await self._begin(actor)
        except LostError as error:
            self.lose(actor, actor.life, str(error))
            replacing = self._replacing.get(index)
            if replacing is not None:
                await replacing
            if replacing is None or index in self._replacing:
                raise
        else:
            self._arrived(index)

    async def call(self, verb: str, *arguments: Any, timeout_s: float) -> Any:
        """Call the actor with the fewest requests in hand, or another one if that one is lost.

        Raises:
            ActorError: as many actors as may be were lost with this request.
            DeadlineError: no actor serves, and none did for `patience_s`.
        """
        attempts = self.care.incidents.rules.attempts
        cause: RlpostError | None = None
        for _ in range(attempts):
            index = await self._take(verb)
            actor, life = self.actors[index], self.actors[index].life
            try:
                return await actor.call(verb, *arguments, timeout_s=timeout_s)
            except (LostError, DeadlineError) as error:
                self.lose(actor, life, str(error))
                cause = error
            finally:
                self._loads.give_back(index)
                self._ended.set()
        raise ActorError(
            f"one request lost supervision.attempts={attempts} {self.role} actors, each in turn; "
            f"the last: {cause}"
        )

    async def _take(self, verb: str) -> int:
        """Wait until an actor serves, and take the one with the fewest requests."""
        waiting = self.actors[0].progress.waiting
        try:
            async with asyncio.timeout(self.patience_s):
                while not self._loads.num_present:
                    self._arrival.clear()
                    with waiting(f"any {self.role} actor", f"to {verb}", self.patience_s):
                        await self._arrival.wait()
        except TimeoutError:
            raise DeadlineError(
                f"{verb} waited {self.patience_s:g} s for one of {len(self.actors)} {self.role} "
                f"actors to serve: {self.state()}"
            ) from None
        return self._loads.take()

    def state(self) -> str:
        """Say of each actor what it does: serves, waits to be proved, or is being replaced."""
        words = []
        for index, actor in enumerate(self.actors):
            if not self._loads.is_away(index):
                words.append(f"{actor.name} serves")
            elif (away_s := self.care.incidents.away_s(actor.name)) is not None:
                words.append(f"{actor.name} was lost {away_s:.0f} s ago and is being replaced")
            else:
                words.append(f"{actor.name} has not begun to serve")
        return ", ".join(words)

    @property
    def num_serving(self) -> int:
        """How many actors take requests now."""
        return self._loads.num_present

    def serving(self) -> list[Actor]:
        """Return the actors that take requests now."""
        return [a for i, a in enumerate(self.actors) if not self._loads.is_away(i)]

    def begun(self) -> list[Actor]:
        """Return the actors that are there, whether they serve already or not."""
        return [actor for i, actor in enumerate(self.actors) if i not in self._replacing]

    def lose(self, actor: Actor, life: int, cause: str) -> None:
        """Replace an actor, unless that life of it has been replaced already."""
        index = self._positions[actor]
        if actor.life != life or index in self._replacing:
            return
        self._loads.leave(index)
        try:
            self.care.incidents.note(actor.name, cause)
        except ActorError as error:
            self.care.alarm.ring(error)
            return
        self._replacing[index] = asyncio.ensure_future(self._bring(index, anew=True))

    def retire(self, actor: Actor, cause: str) -> None:
        """Give an actor nothing more, and have it begin elsewhere once its requests have ended."""
        index = self._positions[actor]
        if index not in self._replacing:
            self.care.incidents.leaves(actor.name, cause)
            self._loads.leave(index)
            self._replacing[index] = asyncio.ensure_future(self._move(index))

    async def _move(self, index: int) -> None:
        while self._loads.in_hand(index):
            self._ended.clear()
            await self._ended.wait()
        await self._bring(index, anew=True)

    async def _bring(self, index: int, *, anew: bool) -> None:
        """Have an actor begin when there is room; put new processes in its place until one does."""
        actor = self.actors[index]
        while True:
            try:
                if anew:
                    await self.care.renew(actor)
                await self.care.settled(actor)
                await self._begin(actor)
            except RlpostError as error:
                anew = True
                try:
                    self.care.incidents.note(actor.name, str(error))
                except ActorError as last:
                    self.care.alarm.ring(last)
                    return
            else:
                break
        self._replacing.pop(index, None)
        self._arrived(index)

    def _arrived(self, index: int) -> None:
        actor = self.actors[index]
        self.care.heartbeat.watch(actor, self.lose)
        if not self.proves:
            self.serve(actor, actor.life)
        elif self.on_arrival is not None:
            welcome = asyncio.ensure_future(self._welcome(self.on_arrival))
            self._welcomes.add(welcome)
            welcome.add_done_callback(self._welcomes.discard)

    async def _welcome(self, welcome: Callable[[], Awaitable[None]]) -> None:
        try:
            await welcome()
        except RlpostError as error:  # nobody else would hear of it
            self.care.alarm.ring(error)

    def serve(self, actor: Actor, life: int) -> None:
        """Give an actor requests, if it has begun and that is still the life that is meant."""
        index = self._positions[actor]
        if actor.life != life or index in self._replacing:
            return
        self._loads.join(index)
        self._arrival.set()
        self.care.incidents.ended(actor.name)

    async def close(self) -> None:
        """Stop replacing."""
        tasks = [*self._replacing.values(), *self._welcomes]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
