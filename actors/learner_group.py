"""The learner ranks as one role: every verb runs on all ranks at once."""

import asyncio
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError

from actors.actor import Actor
from actors.handles import RolloutPool
from actors.reach import Reach
from rlpost.batching import RankBatch
from rlpost.checkpoints.manifest import FileEntry
from rlpost.errors import DeadlineError, LostError
from rlpost.learning import Phase
from rlpost.metrics import Metrics, merged

_POLL_S = 0.1  # between questions to a rank that writes in the background
_NEWS_OF_A_DEATH_S = 10.0  # Ray may tell of it later than the ranks that lost their peer


class LearnerGroup:
    """The learner ranks as one `Learner`.

    A rank that dies or does not answer in time takes the group with it (`LostError`): what the
    others hold is of no use without it, so all go on from a checkpoint.
    """

    def __init__(self, actors: Sequence[Actor], timeout_s: float, turn: asyncio.Lock) -> None:
        """`turn` is held by one verb at a time, for the ranks meet in collectives."""
        self.actors = list(actors)
        self.num_ranks = len(self.actors)
        self.timeout_s = timeout_s
        self.reach = Reach([], [])
        self.num_updates = 0
        self._turn = turn
        self._pool: RolloutPool | None = None
        self._version: int | None = None  # published, and not trained on since

    async def connect(self, timeout_s: float) -> None:
        """Let the ranks find each other, at an address on the first rank's node.

        Raises:
            ActorError: some hosts do not reach each other.
        """
        doors = await self._each("open_door", timeout_s=timeout_s)
        self.reach = Reach(self.actors, doors)
        waiting = self.actors[0].progress.waiting
        with waiting("the hosts of the learner ranks", "reach each other", timeout_s):
            await self.reach.wait(timeout_s)
        [(address, port)] = await _together([self.actors[0].call("address", timeout_s=timeout_s)])
        await self._all("connect", address, port, timeout_s=timeout_s)

    async def check_run_dir(self, run_dir: Path, timeout_s: float) -> None:
        """Refuse a run directory that a rank's host does not see.

        Raises:
            ConfigError: one does not; the message names it.
        """
        await self._all("check_run_dir", str(run_dir), timeout_s=timeout_s)

    async def load(self, folder: Path, phase: Phase, timeout_s: float) -> None:
        """Load the policy on every rank, with a fresh optimiser for the phase."""
        self._pool = self._version = None
        await self._all("load", str(folder), phase, timeout_s=timeout_s)

    def attach(self, pool: RolloutPool) -> None:
        """Publish to these rollout workers from now on, also to those that join them later."""
        self._pool = pool
        pool.follow(self._welcome)

    async def update(self, batches: Sequence[RankBatch], step: int) -> Metrics:
        """Train on one step's batch, one `RankBatch` a rank, while engines on their GPUs sleep."""
        async with self._turn:
            self._version = None
            asleep = await self._alone()
            calls = (
                actor.call("update", batch, step, timeout_s=self.timeout_s)
                for actor, batch in zip(self.actors, batches, strict=True)
            )
            metrics = merged([asleep, *await self._explained(calls)])
            self.num_updates += 1
            return metrics

    async def _alone(self) -> Metrics:
        """Have engines that share the ranks' GPUs sleep; return how many do, and in what time."""
        metrics = Metrics()
        if self._pool is not None and self._pool.sharing:
            started = time.perf_counter()
            metrics.sum("sleep/engines", float(await self._pool.rest()))
            metrics.sum("sleep/fall_s", time.perf_counter() - started)
        return metrics

    async def publish(self, version: int) -> Mapping[str, float]:
        """Put the current weights into every rollout worker that is there, proved."""
        async with self._turn:
            metrics = await self._publish(version)
            self._version = version
            return metrics

    async def _welcome(self) -> None:
        """Give workers that have just come the weights that the others serve.

        Once a step has changed the learner's weights, the next publication does.
        """
        async with self._turn:
            if self._version is not None and self._pool is not None and self._pool.expects:
                await self._publish(self._version)

    async def _publish(self, version: int) -> Mapping[str, float]:
        assert self._pool is not None, "attach() comes before publish()"
        await self._reach(self._pool)
        metrics, lost = (await self._each("publish", version))[0]
        self._pool.published(lost)
        return metrics

    async def _reach(self, pool: RolloutPool) -> None:
        """Open the way to the rollout workers that are there, where they have changed."""
        if (receivers := pool.changed_receivers()) is not None:
            await self._each("attach", receivers)

    async def snapshot(self, url: str) -> None:
        """Copy every rank's state into memory; it is written under `url` in the background."""
        await self._all("snapshot", url)

    async def written(self) -> list[FileEntry]:
        """Wait until the last snapshot is written, and return its files.

        Raises:
            CheckpointError: a rank could not write its part.
        """
        waiting = dict(enumerate(self.actors))
        found: list[FileEntry] = []
        while waiting:
            for rank, actor in list(waiting.items()):
                [entries] = await _together([actor.call("written", timeout_s=self.timeout_s)])
                if entries is not None:
                    found += entries
                    del waiting[rank]
            if waiting:
                await asyncio.sleep(_POLL_S)
        return sorted(found, key=lambda entry: entry.path)

    async def restore(self, url: str, timeout_s: float) -> None:
        """Continue from a checkpoint's snapshot, after `load` with the same phase."""
        await self._all("restore", url, timeout_s=timeout_s)

    async def export(self, folder: Path) -> None:
        """Write the policy as a transformers folder."""
        await self._all("export", str(folder))

    async def _all(self, verb: str, *arguments: Any, timeout_s: float | None = None) -> None:
        async with self._turn:
            await self._each(verb, *arguments, timeout_s=timeout_s)

    async def _each(self, verb: str, *arguments: Any, timeout_s: float | None = None) -> list[Any]:
        limit_s = timeout_s or self.timeout_s
        return await self._explained(
            actor.call(verb, *arguments, timeout_s=limit_s) for actor in self.actors
        )

    async def _explained(self, calls: Iterable[Awaitable[Any]]) -> list[Any]:
        """Await one call of each rank; where they failed for want of a link, say which."""
        try:
            return await _together(calls)
        except LostError as error:
            dead = isinstance(error.__cause__, RayActorError)
            if dead or not (broken := await self.reach.broken()):
                raise
            raise LostError(f"{error}; {broken}") from error


async def _together(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """Await one call of each rank; of several failures, raise the one that explains the others.

    A rank that dies makes the others fail in whatever they do together, and they may say so first.
    """
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if any(task.done() and task.exception() for task in tasks):
            await asyncio.wait(tasks, timeout=_NEWS_OF_A_DEATH_S)
            failures = [error for t in tasks if t.done() and (error := t.exception())]
            deaths = [error for error in failures if isinstance(error.__cause__, RayActorError)]
            raise (deaths or failures)[0]
        return [task.result() for task in tasks]
    except DeadlineError as error:
        raise LostError(str(error)) from error
    finally:
        for task in tasks:
            task.cancel()
