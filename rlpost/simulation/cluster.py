"""A modelled cluster as the controller's roles."""

import asyncio
import heapq
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

from rlpost.batching import BatchPlan, RankBatch, Sample, cut_batches
from rlpost.checkpoints.manifest import FileEntry
from rlpost.choices import OldLogprobs
from rlpost.metrics import Metrics
from rlpost.scheduling import Loads
from rlpost.schema import RunConfig
from rlpost.simulation.clock import virtual_loop
from rlpost.simulation.engine import Engine, EngineRates
from rlpost.simulation.rates import GroupShape, Rates, Shapes
from rlpost.types import Group, Prompt, Sampling, Trajectory, Verdict

_BACKWARD = 2.0  # a backward pass in forward passes


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLoad:
    """What a simulated rank is given: the padded tokens of each of its micro-batches, by update.

    `num_tokens` are those that are no padding, `num_trained` those of responses.
    """

    minibatches: tuple[tuple[int, ...], ...]
    num_tokens: int
    num_trained: int

    @property
    def num_padded(self) -> int:
        """Tokens with padding."""
        return sum(map(sum, self.minibatches))


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


class SimulatedReference:
    """The reference policy, forward only."""

    def __init__(self, rates: Rates) -> None:
        self.tokens_per_s = rates.reference_tokens_per_s or (
            rates.learner_tokens_per_s * (1 + _BACKWARD)
        )
        self.busy_s = 0.0

    async def logprobs(self, trajectories: Sequence[Trajectory]) -> list[tuple[float, ...]]:
        """Take the time of a forward pass."""
        tokens = sum(len(t.prompt_ids) + len(t.token_ids) for t in trajectories)
        self.busy_s += tokens / self.tokens_per_s
        await asyncio.sleep(tokens / self.tokens_per_s)
        return [(0.0,) * len(t.token_ids) for t in trajectories]


class SimulatedLearner:
    """Ranks that take the time of their tokens, and publish."""

    def __init__(self, config: RunConfig, rates: Rates, rollouts: SimulatedRollouts) -> None:
        self.config = config
        self.rates = rates
        self.rollouts = rollouts
        self.num_ranks = config.learner.num_ranks
        self.busy_s = 0.0

    async def update(self, batches: Sequence[RankBatch], step: int) -> Metrics:
        """Take as long as the slowest rank of each update."""
        del step
        loads = cast("Sequence[RankLoad]", batches)
        passes = self.config.epochs + forward_only_passes(self.config)
        updates = zip(*(load.minibatches for load in loads), strict=True)
        slowest = sum(max(map(sum, ranks)) for ranks in updates)
        seconds = passes * slowest / self.rates.learner_tokens_per_s
        self.busy_s += seconds
        await asyncio.sleep(seconds)
        real, padded = (
            sum(load.num_tokens for load in loads),
            sum(load.num_padded for load in loads),
        )
        metrics = Metrics()
        metrics.sum("tokens/trained", sum(load.num_trained for load in loads))
        metrics.mean("batch/padding_frac", padded - real, padded)
        metrics.mean("batch/rank_idle_frac", slowest - padded / self.num_ranks, slowest)
        return metrics

    async def publish(self, version: int) -> Mapping[str, float]:
        """Take the time of the transfer."""
        rates = self.rates
        seconds = rates.publish_s
        if rates.weight_bytes_per_s:
            seconds += rates.weight_bytes / rates.weight_bytes_per_s
        await self.rollouts.publish(version, seconds)
        return {"weights/sync_s": seconds, "weights/size_bytes": rates.weight_bytes}

    async def snapshot(self, url: str) -> None:
        """Write nothing."""

    async def written(self) -> Sequence[FileEntry]:
        """Return no file."""
        return ()

    async def export(self, folder: Path) -> None:
        """Write nothing."""


def forward_only_passes(config: RunConfig) -> float:
    """Return the share of a forward and backward pass that old logprobs cost before the updates."""
    several = config.epochs * config.minibatches > 1
    recompute = several and config.old_logprobs is OldLogprobs.recompute
    return 1 / (1 + _BACKWARD) if recompute else 0.0


class Driver:
    """What the driver itself does between the roles, on the clock that everybody waits for."""

    def __init__(self, rates: Rates) -> None:
        self.rates = rates
        self.busy_s = 0.0

    def spend(self, seconds: float) -> None:
        """Work for so long."""
        self.busy_s += seconds
        virtual_loop().spend(seconds)

    def build_batches(
        self, samples: Sequence[Sample], plan: BatchPlan, seed: int
    ) -> list[RankBatch]:
        """Cut the batch as the real driver does, without making tensors."""
        self.spend(self.rates.driver_per_trajectory_s * len(samples))
        lengths = [sample.num_tokens for sample in samples]
        cuts = cut_batches(lengths, plan, seed)
        loads = []
        for rank in range(plan.num_ranks):
            bins = [ranks[rank] for ranks in cuts]
            members = [samples[i] for micros in bins for micro in micros for i in micro]
            loads.append(
                RankLoad(
                    minibatches=tuple(
                        tuple(_padded(lengths, micro, packing=plan.packing) for micro in micros)
                        for micros in bins
                    ),
                    num_tokens=sum(sample.num_tokens for sample in members),
                    num_trained=sum(len(sample.trajectory.token_ids) for sample in members),
                )
            )
        return cast("list[RankBatch]", loads)


def _padded(lengths: Sequence[int], members: Sequence[int], *, packing: bool) -> int:
    chosen = [lengths[i] for i in members]
    return sum(chosen) if packing else len(chosen) * max(chosen, default=0)


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
