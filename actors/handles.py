"""Crews of Ray actors as the controller's roles."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from actors.actor import Actor
from actors.crew import Crew
from actors.publish import Receiver
from rlpost.errors import DeadlineError, LostError
from rlpost.types import Group, Prompt, Sampling, Trajectory, Verdict


class RolloutPool:
    """The rollout workers as one `Rollouts`.

    A worker takes requests once a publication has reached it. The learner asks
    `changed_receivers()` before each and calls `published(lost)` after it; it calls `rest()`
    before it uses the GPUs that workers share with it.
    """

    def __init__(
        self, crew: Crew, timeout_s: float, vllm_ranks_each: int = 1, num_sharing: int = 0
    ) -> None:
        """The first `num_sharing` of the workers share their GPUs with learner ranks."""
        self.crew = crew
        self.timeout_s = timeout_s
        self.vllm_ranks_each = vllm_ranks_each
        self.sharing = frozenset(crew.actors[:num_sharing])
        self._reached: dict[Actor, int] = {}  # and which life of it
        self._unattached = True  # the learner has opened no way yet, not even to nobody

    async def generate(self, prompt: Prompt, group_size: int, sampling: Sampling) -> Group:
        """Sample one group on the worker with the fewest groups in hand."""
        return await self.crew.call(
            "generate", prompt, group_size, sampling, timeout_s=self.timeout_s
        )

    async def weight_versions(self) -> Mapping[str, int]:
        """Return the version of the weights that each worker serves."""
        actors = self.crew.serving()
        versions = await asyncio.gather(*(self._asked(a, "weight_version") for a in actors))
        pairs = zip(actors, versions, strict=True)
        return {actor.name: version for actor, version in pairs if version is not None}

    async def rest(self) -> int:
        """Have those that share GPUs give them up until the next publication.

        Returns how many vLLM says are asleep; one that cannot is lost.
        """
        sharing = [actor for actor in self.crew.begun() if actor in self.sharing]
        return sum(map(bool, await asyncio.gather(*(self._asked(a, "rest") for a in sharing))))

    async def _asked(self, actor: Actor, verb: str) -> Any:
        """Return a worker's answer, or None if it is lost."""
        life = actor.life
        try:
            return await actor.call(verb, timeout_s=self.timeout_s)
        except (LostError, DeadlineError) as error:
            self.crew.lose(actor, life, str(error))
            return None

    def follow(self, welcome: Callable[[], Awaitable[None]]) -> None:
        """Be published to by a new learner; `welcome` brings newcomers what the others serve."""
        self._reached, self._unattached = {}, True
        self.crew.on_arrival = welcome

    @property
    def expects(self) -> bool:
        """Whether a worker waits for a publication."""
        return any(self._reached.get(actor) != actor.life for actor in self.crew.begun())

    def changed_receivers(self) -> list[Receiver] | None:
        """Return those that a publication is to reach; None if the last one reached just these."""
        lives = {actor: actor.life for actor in self.crew.begun()}
        if lives == self._reached and not self._unattached:
            return None
        self._reached, self._unattached = lives, False
        return self.receivers()

    def receivers(self) -> list[Receiver]:
        """Return the workers as the learner's weight transfer addresses them."""
        return [
            Receiver(
                worker=self.crew.actors.index(actor),
                place=actor.place,
                node=actor.node_id,
                handle=actor.handle,
                num_ranks=self.vllm_ranks_each,
            )
            for actor in self.crew.begun()
        ]

    def published(self, lost: Mapping[str, str]) -> None:
        """Let those serve that a publication has reached; `lost` names the others' places."""
        for actor, life in list(self._reached.items()):
            if (cause := lost.get(actor.place)) is None:
                self.crew.serve(actor, life)
            else:
                del self._reached[actor]
                self.crew.lose(actor, life, cause)


class RewardPool:
    """The reward workers as one `Verifiers`."""

    def __init__(self, crew: Crew, timeout_s: float) -> None:
        self.crew = crew
        self.timeout_s = timeout_s

    async def verify(self, prompt: Prompt, trajectories: Sequence[Trajectory]) -> list[Verdict]:
        """Score one group's trajectories on the worker with the fewest groups in hand."""
        limit_s = 60.0 + self.timeout_s * len(trajectories)
        return await self.crew.call("verify", prompt, trajectories, timeout_s=limit_s)


class ReferenceHandle:
    """The reference actor as `Reference`."""

    def __init__(self, crew: Crew, timeout_s: float) -> None:
        self.crew = crew
        self.timeout_s = timeout_s

    async def logprobs(self, trajectories: Sequence[Trajectory]) -> list[tuple[float, ...]]:
        """Return log pi_ref of each trajectory's tokens."""
        return await self.crew.call("logprobs", trajectories, timeout_s=self.timeout_s)
