"""From a recipe to running actors and back to nothing."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from actors.actor import Actor
from actors.alarm import Alarm
from actors.crew import Care, Crew
from actors.handles import ReferenceHandle, RewardPool, RolloutPool
from actors.heartbeat import Heartbeat
from actors.learner_group import LearnerGroup
from actors.memory import resident_gib
from actors.placement import leaving_nodes, reserve
from actors.processes import OVERLAPPING, start_process
from actors.turns import Turns, gpus_of
from rlpost.errors import ActorError, LostError
from rlpost.incidents import Incidents
from rlpost.placing.seats import Seat, seats
from rlpost.placing.sharing import num_sharing
from rlpost.schema import RunConfig
from rlpost.stalls.progress import Progress
from rlpost.stalls.stall import Witness

log = logging.getLogger(__name__)

_AT_ONCE_S = 5.0
_ROOM_POLL_S = 2.0


class Cast:
    """The actors of a run: placed and created together, started by role, ended together.

    All begin to load their libraries at once, while the driver prepares task and model. Those that
    are lost later are replaced, but for learner ranks: their loss rings the alarm, and
    `renew_learners()` makes a new group for whoever goes on from a checkpoint.

    Use: `cast = Cast(config, roles)`, then, in `cast.alarm.watch(...)`, `await cast.rollouts(...)`
    and so on, at last `await cast.close()`.
    """

    def __init__(self, config: RunConfig, roles: tuple[str, ...]) -> None:
        self.config = config
        self.seats = seats(config, roles)
        self.reservation = reserve(self.seats, config.ray.placement_timeout_s)
        self.alarm = Alarm()
        self.progress = Progress()
        self.turns = Turns(self.progress)
        self.witnesses: dict[str, Witness] = {}
        self.heartbeat = Heartbeat(config.supervision, Path(config.run_dir) / "stalls")
        self.incidents = Incidents(config.supervision, Path(config.run_dir))
        self.actors = [self._create(seat, position) for position, seat in enumerate(self.seats)]
        self._crews: dict[str, Crew] = {}
        self._learners: LearnerGroup | None = None
        self._in_vain = 0  # learner groups in a row that trained nothing
        self._pool: RolloutPool | None = None
        self._draining: asyncio.Future[None] | None = None

    async def rollouts(self, model_folder: Path) -> RolloutPool:
        """Start the rollout workers, once."""
        if self._pool is None:
            rollout = self.config.rollout
            crew = self._crew("rollout", rollout.start_timeout_s)
            await self._start(crew, rollout.start_timeout_s, str(model_folder))
            self._pool = RolloutPool(
                crew,
                rollout.timeout_s + 60.0,
                rollout.num_ranks,
                num_sharing(self.config),
            )
            if self.config.ray.address is not None:
                self._draining = asyncio.ensure_future(self._drain(crew))
        return self._pool

    async def rewards(self) -> RewardPool:
        """Start the reward workers, once."""
        reward = self.config.reward
        if "reward" not in self._crews:
            await self._start(self._crew("reward", reward.start_timeout_s), reward.start_timeout_s)
        return RewardPool(self._crews["reward"], reward.timeout_s)

    async def reference(self, model_folder: Path) -> ReferenceHandle | None:
        """Start the reference policy, or give it other weights, where there is one."""
        reference = self.config.reference
        crew = self._crew("reference", reference.start_timeout_s)
        await self._start(crew, reference.start_timeout_s, str(model_folder))
        return ReferenceHandle(crew, reference.timeout_s) if crew.actors else None

    async def learners(self) -> LearnerGroup:
        """Let the learner ranks find each other, once a group; engines on their GPUs sleep."""
        if self._pool is not None:
            async with self.turns.learner:
                await self._pool.rest()
        if self._learners is None:
            learner = self.config.learner
            group = LearnerGroup(self._of("learner"), learner.timeout_s, self.turns.learner)
            loop = asyncio.get_running_loop()
            self.witnesses["Learner hosts"] = lambda: group.reach.section(loop)
            await group.connect(learner.start_timeout_s)
            self._learners = group
            for actor in group.actors:
                await asyncio.to_thread(self._locate, actor)
                self.heartbeat.watch(actor, lambda *lost: self.alarm.ring(LostError(lost[-1])))
        return self._learners

    async def renew_learners(self, loss: LostError) -> None:
        """Put new processes in the place of all learner ranks.

        Raises:
            ActorError: too many groups in a row were lost before they had trained a step.
        """
        fruitful = self._learners is not None and self._learners.num_updates
        self._in_vain = 0 if fruitful else self._in_vain + 1
        if self._in_vain >= (most := self.config.supervision.attempts):
            raise ActorError(
                f"{most} groups of learner ranks in a row (supervision.attempts) were lost before "
                f"they had trained a step; the last: {loss}. Mend the cause and continue with "
                "resume=auto"
            )
        self._learners = None
        if self._pool is not None:
            self._pool.crew.on_arrival = None  # newcomers wait for the new group
        await asyncio.gather(*(self._renew(actor) for actor in self._of("learner")))
        self.alarm.forget(LostError)  # of the ranks that are replaced

    async def restart(self, name: str) -> None:
        """End an actor that stands still: whoever waits for it hears of a loss, which is made up.

        Raises:
            ActorError: no actor has that name.
        """
        found = [actor for actor in self.actors if actor.name == name]
        if not found:
            raise ActorError(f"{name} stands still and is no actor that could be restarted")
        for actor in found:
            actor.kill()

    def state(self) -> str:
        """Say of each actor of a crew whether it serves."""
        return "\n".join(f"- {crew.state()}" for crew in self._crews.values() if crew.actors)

    async def vitals(self) -> dict[str, float]:
        """Return how the actors are: `memory/<process>_gib`, `workers/<role>`, `faults/lost`."""
        present = self.present()
        calls = (a.call("__ray_call__", resident_gib, timeout_s=_AT_ONCE_S) for a in present)
        found = await asyncio.gather(*calls, return_exceptions=True)
        answers = zip((actor.name for actor in present), found, strict=True)
        sizes = {name: size for name, size in answers if isinstance(size, float)}
        sizes["driver"] = resident_gib(children=False)
        values = {f"memory/{name}_gib": size for name, size in sizes.items()}
        values |= {f"workers/{role}": float(c.num_serving) for role, c in self._crews.items()}
        return values | {"faults/lost": float(self.incidents.num_losses)}

    def _of(self, role: str) -> list[Actor]:
        pairs = zip(self.seats, self.actors, strict=True)
        return [actor for seat, actor in pairs if seat.role == role]

    def present(self) -> list[Actor]:
        """Return the actors that are there: not yet to come, and not being replaced."""
        begun = {actor for crew in self._crews.values() for actor in crew.begun()}
        begun.update(self._of("learner"))
        return [actor for actor in self.actors if actor in begun]

    def _crew(self, role: str, patience_s: float) -> Crew:
        if role not in self._crews:
            care = Care(
                renew=self._renew,
                settled=self._settled,
                incidents=self.incidents,
                alarm=self.alarm,
                heartbeat=self.heartbeat,
            )
            needed = sum(seat.role == role and not seat.elastic for seat in self.seats)
            self._crews[role] = Crew(
                role,
                self._of(role),
                care,
                patience_s,
                proves=role == "rollout",
                num_needed=needed,
            )
        return self._crews[role]

    async def _start(self, crew: Crew, limit_s: float, *arguments: Any) -> None:
        async def begin(actor: Actor) -> None:
            seat = self.seats[self.actors.index(actor)]
            if seat.shares:
                await self._begin_beside_learner(seat, actor, limit_s, *arguments)
            else:
                await actor.call("start", *arguments, timeout_s=limit_s)
            await asyncio.to_thread(self._locate, actor)

        await crew.start(begin)

    async def _begin_beside_learner(
        self, seat: Seat, actor: Actor, limit_s: float, *arguments: Any
    ) -> None:
        """Have an engine begin on the GPUs of its learner ranks, while these do nothing."""
        learner = self.config.learner
        pairs = zip(self.seats, self.actors, strict=True)
        ranks = [one for other, one in pairs if other.bench == seat.bench and not other.shares]
        patience_s = max(learner.start_timeout_s, learner.timeout_s)
        async with self.turns.beginning(actor.name, patience_s):
            gpus = await gpus_of(ranks, learner.start_timeout_s)
            await actor.call("start", *arguments, gpus, timeout_s=limit_s)

    def _create(self, seat: Seat, position: int) -> Actor:
        place = self.reservation.place(position)
        return Actor(
            name=seat.name,
            node=place.node,
            node_id=place.node_id,
            handle=start_process(self.config, seat, place),
            overlapping=seat.role in OVERLAPPING,
            progress=self.progress,
        )

    async def _renew(self, actor: Actor) -> None:
        """End what is left of an actor and put a new process in its place."""
        position = self.actors.index(actor)
        actor.kill()
        actor.life += 1
        place = await asyncio.to_thread(self.reservation.place, position)
        actor.handle = start_process(self.config, self.seats[position], place)

    async def _settled(self, actor: Actor) -> None:
        """Wait until the cluster has room for an actor."""
        position = self.actors.index(actor)
        while True:
            if await asyncio.to_thread(self.reservation.has_room, position):
                return
            await asyncio.sleep(_ROOM_POLL_S)

    async def _drain(self, crew: Crew) -> None:
        """Have workers leave the nodes that Ray has been told to drain, if no rank stays there."""
        while True:
            await asyncio.sleep(self.config.supervision.heartbeat_s)
            nodes = await asyncio.to_thread(leaving_nodes)
            for actor, seat in zip(self.actors, self.seats, strict=True):
                if actor in crew.serving() and actor.node_id in nodes and not seat.shares:
                    crew.retire(actor, f"node {actor.node} is to be drained")

    def _locate(self, actor: Actor) -> None:
        """Note on which node an actor is: after the loss of one, its successor is on another."""
        place = self.reservation.place(self.actors.index(actor))
        actor.node_id, actor.node = place.node_id, place.node

    async def close(self) -> None:
        """End all actors: politely for a moment, then at once."""
        if self._draining is not None:
            self._draining.cancel()
        await self.heartbeat.close()
        await asyncio.gather(*(crew.close() for crew in self._crews.values()))
        polite = [a.call("close", timeout_s=3.0) for a in self.present() if a.overlapping]
        await asyncio.gather(*polite, return_exceptions=True)
        for actor in self.actors:
            actor.kill()
        self.reservation.release()


@asynccontextmanager
async def running(config: RunConfig, roles: tuple[str, ...]) -> AsyncGenerator[Cast]:
    """Place a cast of actors and end it with the block, however the block ends."""
    cast = Cast(config, roles)
    try:
        yield cast
    finally:
        await asyncio.shield(cast.close())
