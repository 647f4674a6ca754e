"""From a recipe to running actors and back to nothing."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import ray

from actors.actor import PULSE, Actor
from actors.alarm import Alarm
from actors.crew import Care, Crew
from actors.ending import Ending
from actors.handles import ReferenceHandle, RewardPool, RolloutPool
from actors.heartbeat import Heartbeat
from actors.learner import LearnerRank
from actors.learner_group import LearnerGroup
from actors.memory import resident_gib
from actors.placement import Place, reserve
from actors.reference import ReferencePolicy
from actors.reward import RewardWorker
from actors.rollout import RolloutWorker
from actors.runtime import ray_runtime
from rlpost.errors import LostError
from rlpost.incidents import Incidents
from rlpost.schema import RunConfig
from rlpost.seats import Seat, seats

log = logging.getLogger(__name__)

_COMMON = {
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
    "PYTHONDONTWRITEBYTECODE": "",  # without cached bytecode vLLM takes a minute longer to start
}

_KINDS = {
    "learner": LearnerRank,
    "rollout": RolloutWorker,
    "reference": ReferencePolicy,
    "reward": RewardWorker,
}
_AT_ONCE_S = 5.0
_OVERLAPPING = ("rollout", "reward")  # these serve many calls at once


def _environment(config: RunConfig, role: str) -> dict[str, str]:
    """Return the environment of a role's process: thread counts, and quiet libraries."""
    if role == "rollout":
        return _COMMON | {
            "OMP_NUM_THREADS": str(config.rollout.num_threads),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # On CPU this, with the executor `uni`, keeps engine and worker in one process.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if config.rollout.num_gpus else "0",
            "VLLM_NO_USAGE_STATS": "1",
            # vLLM compiles a few sampling functions even when eager: a minute of C++ on CPU.
            "TORCH_COMPILE_DISABLE": "1" if config.rollout.enforce_eager else "0",
            "VLLM_LOGGING_LEVEL": "WARNING",
        }
    threads = {"learner": config.learner.num_threads, "reference": config.reference.num_threads}
    environment = _COMMON | {"OMP_NUM_THREADS": str(threads.get(role, 1))}
    if role == "learner" and not config.learner.num_gpus:
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return environment


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
        self.heartbeat = Heartbeat(config.supervision)
        self.incidents = Incidents(config.supervision, Path(config.run_dir))
        self.actors = [self._create(seat, position) for position, seat in enumerate(self.seats)]
        self._crews: dict[str, Crew] = {}
        self._learners: LearnerGroup | None = None
        self._pool: RolloutPool | None = None

    async def rollouts(self, model_folder: Path) -> RolloutPool:
        """Start the rollout workers, once."""
        if self._pool is None:
            rollout = self.config.rollout
            crew = self._crew("rollout", rollout.start_timeout_s)
            await self._start(crew, rollout.start_timeout_s, str(model_folder))
            self._pool = RolloutPool(crew, rollout.timeout_s + 60.0, rollout.tensor_parallel_size)
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
        """Let the learner ranks find each other, once a group."""
        if self._learners is None:
            learner = self.config.learner
            group = LearnerGroup(self._of("learner"), learner.timeout_s)
            await group.connect(learner.start_timeout_s)
            self._learners = group
            for actor in group.actors:
                self.heartbeat.watch(actor, lambda *lost: self.alarm.ring(LostError(lost[-1])))
        return self._learners

    async def renew_learners(self) -> None:
        """Put new processes in the place of all learner ranks."""
        self._learners = None
        await asyncio.gather(*(self._renew(actor) for actor in self._of("learner")))

    async def vitals(self) -> dict[str, float]:
        """Return how the actors are: `memory/<process>_gib`, `workers/<role>`, `faults/lost`."""
        calls = (a.call("__ray_call__", resident_gib, timeout_s=_AT_ONCE_S) for a in self.actors)
        found = await asyncio.gather(*calls, return_exceptions=True)
        answers = zip((actor.name for actor in self.actors), found, strict=True)
        sizes = {name: size for name, size in answers if isinstance(size, float)}
        sizes["driver"] = resident_gib(children=False)
        values = {f"memory/{name}_gib": size for name, size in sizes.items()}
        values |= {f"workers/{role}": float(c.num_serving) for role, c in self._crews.items()}
        return values | {"faults/lost": float(self.incidents.num_losses)}

    def _of(self, role: str) -> list[Actor]:
        pairs = zip(self.seats, self.actors, strict=True)
        return [actor for seat, actor in pairs if seat.role == role]

    def _crew(self, role: str, patience_s: float) -> Crew:
        if role not in self._crews:
            care = Care(
                renew=self._renew,
                incidents=self.incidents,
                alarm=self.alarm,
                heartbeat=self.heartbeat,
            )
            proves = role == "rollout"
            self._crews[role] = Crew(role, self._of(role), care, patience_s, proves=proves)
        return self._crews[role]

    async def _start(self, crew: Crew, limit_s: float, *arguments: Any) -> None:
        async def begin(actor: Actor) -> None:
            await actor.call("start", *arguments, timeout_s=limit_s)
            await asyncio.to_thread(self._locate, actor)

        await crew.start(begin)

    def _create(self, seat: Seat, position: int) -> Actor:
        place = self.reservation.place(position)
        return Actor(
            name=seat.name,
            node=place.node,
            node_id=place.node_id,
            handle=self._handle(seat, place),
            overlapping=seat.role in _OVERLAPPING,
        )

    def _handle(self, seat: Seat, place: Place) -> Any:
        options: dict[str, Any] = {
            "num_cpus": seat.num_cpus,
            "num_gpus": seat.num_gpus,
            "scheduling_strategy": place.strategy,
            "runtime_env": {"env_vars": _environment(self.config, seat.role)},
        }
        if seat.role in _OVERLAPPING:
            options["max_concurrency"] = 1000
        else:
            options["concurrency_groups"] = {PULSE: 1}
        return ray.remote(**options)(_KINDS[seat.role]).remote(self.config, seat.index)

    async def _renew(self, actor: Actor) -> None:
        """End what is left of an actor and put a new process in its place."""
        position = self.actors.index(actor)
        actor.kill()
        actor.life += 1
        place = await asyncio.to_thread(self.reservation.place, position)
        actor.handle = self._handle(self.seats[position], place)

    def _locate(self, actor: Actor) -> None:
        """Note on which node an actor is: after the loss of one, its successor is on another."""
        place = self.reservation.place(self.actors.index(actor))
        actor.node_id, actor.node = place.node_id, place.node

    async def close(self) -> None:
        """End all actors: politely for a moment, then at once."""
        await self.heartbeat.close()
        await asyncio.gather(*(crew.close() for crew in self._crews.values()))
        polite = [actor.call("close", timeout_s=3.0) for actor in self.actors if actor.overlapping]
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


def run(config: RunConfig, ending: Ending, program: Callable[[], Awaitable[None]]) -> int:
    """Run an async program on Ray; a signal cancels it and ends all actors.

    Returns the exit code: 0, or 130 after a signal.
    """
    with ray_runtime(config.ray):
        return asyncio.run(_until(ending, program))


async def _until(ending: Ending, program: Callable[[], Awaitable[None]]) -> int:
    task = asyncio.ensure_future(program())
    loop = asyncio.get_running_loop()
    ending.cancels(lambda: loop.call_soon_threadsafe(task.cancel))
    try:
        await task
    except asyncio.CancelledError:
        if ending.signal is None:
            raise
        return 130
    return 0
