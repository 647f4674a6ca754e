"""From a recipe to running actors and back to nothing."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import ray

from actors.ending import Ending
from actors.handles import Actor, LearnerGroup, ReferenceHandle, RewardPool, RolloutPool
from actors.learner import LearnerRank
from actors.memory import resident_gib
from actors.placement import reserve
from actors.reference import ReferencePolicy
from actors.reward import RewardWorker
from actors.rollout import RolloutWorker
from actors.runtime import ray_runtime
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

    All begin to load their libraries at once, while the driver prepares task and model.

    Use: `cast = Cast(config, roles)`, then `await cast.rollouts(...)` and so on, at last
    `await cast.close()`.
    """

    def __init__(self, config: RunConfig, roles: tuple[str, ...]) -> None:
        self.config = config
        self.seats = seats(config, roles)
        self.reservation = reserve(self.seats, config.ray.placement_timeout_s)
        self.actors: list[Actor] = []
        self._started: dict[str, Any] = {}
        for position, seat in enumerate(self.seats):
            self.actors.append(self._create(seat, position))

    async def rollouts(self, model_folder: Path) -> RolloutPool:
        """Start the rollout workers, once."""
        if "rollout" not in self._started:
            limit_s = self.config.rollout.start_timeout_s
            actors = await self._start("rollout", limit_s, str(model_folder))
            self._started["rollout"] = RolloutPool(actors, self.config.rollout.timeout_s + 60.0)
        return self._started["rollout"]

    async def rewards(self) -> RewardPool:
        """Start the reward workers, once."""
        if "reward" not in self._started:
            actors = await self._start("reward", self.config.reward.start_timeout_s)
            self._started["reward"] = RewardPool(actors, self.config.reward.timeout_s)
        return self._started["reward"]

    async def reference(self, model_folder: Path) -> ReferenceHandle | None:
        """Start the reference policy, or give it other weights, where there is one."""
        limit_s = self.config.reference.start_timeout_s
        actors = await self._start("reference", limit_s, str(model_folder))
        return ReferenceHandle(actors[0], self.config.reference.timeout_s) if actors else None

    async def learners(self) -> LearnerGroup:
        """Let the learner ranks find each other, once."""
        if "learner" not in self._started:
            group = LearnerGroup(self._of("learner"), self.config.learner.timeout_s)
            await group.connect(self.config.learner.start_timeout_s)
            self._started["learner"] = group
        return self._started["learner"]

    async def memory(self) -> dict[str, float]:
        """Return `memory/<process>_gib` of the driver and of every actor that answers at once."""
        calls = (a.call("__ray_call__", resident_gib, timeout_s=_AT_ONCE_S) for a in self.actors)
        found = await asyncio.gather(*calls, return_exceptions=True)
        answers = zip((actor.name for actor in self.actors), found, strict=True)
        sizes = {name: size for name, size in answers if isinstance(size, float)}
        sizes["driver"] = resident_gib(children=False)
        return {f"memory/{name}_gib": size for name, size in sizes.items()}

    def _of(self, role: str) -> list[Actor]:
        pairs = zip(self.seats, self.actors, strict=True)
        return [actor for seat, actor in pairs if seat.role == role]

    async def _start(self, role: str, limit_s: float, *arguments: Any) -> list[Actor]:
        actors = self._of(role)
        await asyncio.gather(
            *(actor.call("start", *arguments, timeout_s=limit_s) for actor in actors)
        )
        return actors

    def _create(self, seat: Seat, position: int) -> Actor:
        place = self.reservation.place(position)
        options: dict[str, Any] = {
            "num_cpus": seat.num_cpus,
            "num_gpus": seat.num_gpus,
            "scheduling_strategy": place.strategy,
            "runtime_env": {"env_vars": _environment(self.config, seat.role)},
        }
        if seat.role in _OVERLAPPING:
            options["max_concurrency"] = 1000
        kind = ray.remote(_KINDS[seat.role])
        handle = kind.options(**options).remote(self.config, seat.index)
        return Actor(name=seat.name, node=place.node, node_id=place.node_id, handle=handle)

    async def close(self) -> None:
        """End all actors: politely for a moment, then at once."""
        polite = [
            actor.call("close", timeout_s=3.0)
            for actor in self.actors
            if actor.name.startswith(_OVERLAPPING)
        ]
        await asyncio.gather(*polite, return_exceptions=True)
        for actor in self.actors:
            with contextlib.suppress(Exception):
                ray.kill(actor.handle)
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
