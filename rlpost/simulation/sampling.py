"""The side of a modelled cluster that samples: prompts, engines and verifiers, as roles."""

import asyncio
import heapq
import random
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

from rlpost.scheduling import Loads
from rlpost.schema import RunConfig
from rlpost.simulation.engine import Engine, EngineRates
from rlpost.simulation.rates import GroupShape, Rates, Shapes
from rlpost.types import Group, Prompt, Sampling, Trajectory, Verdict


class SimulatedPrompts:
    """Prompts that carry the shape of the group that will be sampled for them."""

    def __init__(self, shapes: Shapes, config: RunConfig, seed: int) -> None:
        self.shapes = shapes
        self.group_size = config.group_size
        self.most_tokens = config.sampling.max_response_tokens
        self.seed = seed
        self.drawn = 0

    def draw(self, count: int) -> list[Prompt]:
        """Return the next prompts."""
        self.drawn += count
        return [self._prompt(n) for n in range(self.drawn - count, self.drawn)]

    def recall(self, ids: Collection[str]) -> dict[str, Prompt]:
        """Return prompts by their ids."""
        return {name: self._prompt(int(name.rpartition("-")[2])) for name in ids}

    def state_dict(self) -> dict[str, int]:
        """Return how many were drawn."""
        return {"drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on behind those that were drawn."""
        self.drawn = state["drawn"]

    def _prompt(self, number: int) -> Prompt:
        rng = random.Random(self.seed * 1_000_003 + number)
        shape = self.shapes.draw(rng, self.group_size, self.most_tokens)
        return Prompt(
            id=f"{self.seed}-{number}",
            text="",
            token_ids=_zeros(shape.prompt_tokens),
            metadata={"shape": shape},
        )


class SimulatedRollouts:
    """Engines, and the pool's way of spreading groups over them."""

    def __init__(self, config: RunConfig, rates: Rates) -> None:
        rollout = config.rollout
        speed = EngineRates(
            decode_base_s=rates.decode_base_s,
            decode_per_sequence_s=rates.decode_per_sequence_s,
            prefill_per_token_s=rates.prefill_per_token_s,
        )
        self.engines = [
            Engine(speed, rollout.max_num_seqs, in_flight=rollout.in_flight.value)
            for _ in range(rollout.num_workers)
        ]
        self.request_s = rates.request_s
        self.loads = Loads(rollout.num_workers)
        self.version = -1

    async def generate(self, prompt: Prompt, group_size: int, sampling: Sampling) -> Group:
        """Sample one group on the worker with the fewest groups in hand."""
        del sampling
        shape: GroupShape = prompt.metadata["shape"]
        lengths = shape.lengths[:group_size]
        index = self.loads.take()
        try:
            if self.request_s:
                await asyncio.sleep(self.request_s)
            spans = await self.engines[index].generate(shape.prompt_tokens, lengths)
        finally:
            self.loads.give_back(index)
        worker = f"rollout-{index}"
        trajectories = tuple(_trajectory(prompt, tuple(own), worker) for own in spans)
        return Group(prompt=prompt, trajectories=trajectories)

    async def weight_versions(self) -> Mapping[str, int]:
        """Return the version that all workers serve."""
        return {"rollout": self.version}

    async def publish(self, version: int, seconds: float) -> None:
        """Stop all engines for so long, and let them go on with new weights."""
        await asyncio.gather(*(engine.pause() for engine in self.engines))
        await asyncio.sleep(seconds)
        for engine in self.engines:
            engine.resume(version)
        self.version = version


class SimulatedVerifiers:
    """Verifier processes, each with its queue; groups go to the workers in turn."""

    def __init__(self, config: RunConfig, rates: Rates) -> None:
        reward = config.reward
        self.verify_s = rates.verify_s
        self.free_s = [[0.0] * reward.num_processes for _ in range(reward.num_workers)]
        self.busy_s = 0.0
        self._next = 0

    async def verify(self, prompt: Prompt, trajectories: Sequence[Trajectory]) -> list[Verdict]:
        """Take the time that the verifications take, and return the shape's rewards."""
        shape: GroupShape = prompt.metadata["shape"]
        processes = self.free_s[self._next % len(self.free_s)]
        self._next += 1
        now = end = asyncio.get_running_loop().time()
        for _ in trajectories:
            free = max(now, processes[0]) + self.verify_s
            heapq.heapreplace(processes, free)
            end = max(end, free)
        self.busy_s += self.verify_s * len(trajectories)
        if end > now:
            await asyncio.sleep(end - now)
        return [Verdict(reward=shape.rewards[i]) for i, _ in enumerate(trajectories)]


def _trajectory(prompt: Prompt, spans: tuple[tuple[int, int], ...], worker: str) -> Trajectory:
    count, versions = _versions(spans)
    return Trajectory(
        prompt_ids=prompt.token_ids,
        token_ids=_zeros(count),
        loss_mask=_trues(count),
        behavior_logprobs=_logprobs(count),
        weight_versions=versions,
        text="",
        finish_reason="stop",
        worker=worker,
    )


# Trajectories of equal length share their tokens: nobody looks at more than how many they are.
@lru_cache(maxsize=65536)
def _zeros(count: int) -> tuple[int, ...]:
    return (0,) * count


@lru_cache(maxsize=65536)
def _trues(count: int) -> tuple[bool, ...]:
    return (True,) * count


@lru_cache(maxsize=65536)
def _logprobs(count: int) -> tuple[float, ...]:
    return (0.0,) * count


@lru_cache(maxsize=4096)
def _versions(spans: tuple[tuple[int, int], ...]) -> tuple[int, tuple[int, ...]]:
    versions = tuple(version for count, version in spans for _ in range(count))
    return len(versions), versions
