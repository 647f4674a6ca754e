"""Ray handles as the controller's roles: spread load, put limits on waiting, name who failed."""

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError, RayTaskError

from actors.failures import told
from actors.publish import Receiver
from rlpost.batching import RankBatch
from rlpost.errors import DeadlineError
from rlpost.learning import Phase
from rlpost.manifest import FileEntry
from rlpost.metrics import Metrics, merged
from rlpost.scheduling import Loads
from rlpost.types import Group, Prompt, Sampling, Trajectory, Verdict

_POLL_S = 0.1  # between questions to a rank that writes in the background
_NEWS_OF_A_DEATH_S = 3.0  # Ray may tell of it later than the ranks that lost their peer


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """A Ray actor with the name and node that its failures are reported under."""

    name: str
    node: str
    node_id: str
    handle: Any

    async def call(self, verb: str, *arguments: Any, timeout_s: float) -> Any:
        """Call a method and wait for its result.

        Raises:
            DeadlineError: no answer within `timeout_s`.
            ActorError: the actor died, or raised something that is not an `RlpostError`.
        """
        reference = getattr(self.handle, verb).remote(*arguments)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.wrap_future(reference.future())
        except TimeoutError:
            raise DeadlineError(
                f"{self.place} did not finish {verb} within {timeout_s:g} s"
            ) from None
        except (RayActorError, RayTaskError) as error:
            raise told(self.place, verb, error) from error

    @property
    def place(self) -> str:
        """The actor and its node, as messages name them."""
        return f"{self.name} on node {self.node}"


class RolloutPool:
    """The rollout workers as one `Rollouts`."""

    def __init__(self, actors: Sequence[Actor], timeout_s: float) -> None:
        self.actors = list(actors)
        self.timeout_s = timeout_s
        self._loads = Loads(len(self.actors))

    async def generate(self, prompt: Prompt, group_size: int, sampling: Sampling) -> Group:
        """Sample one group on the worker with the fewest groups in hand."""
        index = self._loads.take()
        try:
            return await self.actors[index].call(
                "generate", prompt, group_size, sampling, timeout_s=self.timeout_s
            )
        finally:
            self._loads.give_back(index)

    async def weight_versions(self) -> Mapping[str, int]:
        """Return the version of the weights that each worker serves."""
        calls = [actor.call("weight_version", timeout_s=self.timeout_s) for actor in self.actors]
        versions = await asyncio.gather(*calls)
        return {a.name: version for a, version in zip(self.actors, versions, strict=True)}

    def receivers(self) -> list[Receiver]:
        """Return the workers as the learner's weight transfer addresses them."""
        return [Receiver(place=a.place, node=a.node_id, handle=a.handle) for a in self.actors]


class RewardPool:
    """The reward workers as one `Verifiers`, used in turn."""

    def __init__(self, actors: Sequence[Actor], timeout_s: float) -> None:
        self.actors = list(actors)
        self.timeout_s = timeout_s
        self._next = 0

    async def verify(self, prompt: Prompt, trajectories: Sequence[Trajectory]) -> list[Verdict]:
        """Score one group's trajectories."""
        actor = self.actors[self._next % len(self.actors)]
        self._next += 1
        limit_s = 60.0 + self.timeout_s * len(trajectories)
        return await actor.call("verify", prompt, trajectories, timeout_s=limit_s)


class ReferenceHandle:
    """The reference actor as `Reference`."""

    def __init__(self, actor: Actor, timeout_s: float) -> None:
        self.actor = actor
        self.timeout_s = timeout_s

    async def logprobs(self, trajectories: Sequence[Trajectory]) -> list[tuple[float, ...]]:
        """Return log pi_ref of each trajectory's tokens."""
        return await self.actor.call("logprobs", trajectories, timeout_s=self.timeout_s)


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
    finally:
        for task in tasks:
            task.cancel()


class LearnerGroup:
    """The learner ranks as one `Learner`; every verb runs on all ranks at once."""

    def __init__(self, actors: Sequence[Actor], timeout_s: float) -> None:
        self.actors = list(actors)
        self.num_ranks = len(self.actors)
        self.timeout_s = timeout_s

    async def _all(self, verb: str, *arguments: Any, timeout_s: float | None = None) -> list[Any]:
        limit_s = timeout_s or self.timeout_s
        return await _together(
            actor.call(verb, *arguments, timeout_s=limit_s) for actor in self.actors
        )

    async def connect(self, timeout_s: float) -> None:
        """Let the ranks find each other."""
        address, port = await self.actors[0].call("address", timeout_s=timeout_s)
        await self._all("connect", address, port, timeout_s=timeout_s)

    async def check_run_dir(self, run_dir: Path, timeout_s: float) -> None:
        """Refuse a run directory that a rank's host does not see.

        Raises:
            ConfigError: one does not; the message names it.
        """
        await self._all("check_run_dir", str(run_dir), timeout_s=timeout_s)

    async def load(self, folder: Path, phase: Phase, timeout_s: float) -> None:
        """Load the policy on every rank, with a fresh optimiser for the phase."""
        await self._all("load", str(folder), phase, timeout_s=timeout_s)

    async def attach(self, pool: RolloutPool, num_vllm_ranks: int, timeout_s: float) -> None:
        """Open the way from the learner to the rollout workers."""
        await self._all("attach", pool.receivers(), num_vllm_ranks, timeout_s=timeout_s)

    async def update(self, batches: Sequence[RankBatch], step: int) -> Metrics:
        """Train on one step's batch, one `RankBatch` a rank."""
        calls = (
            actor.call("update", batch, step, timeout_s=self.timeout_s)
            for actor, batch in zip(self.actors, batches, strict=True)
        )
        return merged(await _together(calls))

    async def publish(self, version: int) -> Mapping[str, float]:
        """Put the current weights into every rollout worker, proved."""
        return (await self._all("publish", version))[0]

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
                entries = await actor.call("written", timeout_s=self.timeout_s)
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
