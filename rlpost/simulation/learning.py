"""The side of a modelled cluster that learns: reference, learner and driver, as roles."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from rlpost.batching import BatchPlan, RankBatch, Sample, cut_batches
from rlpost.checkpoints.manifest import FileEntry
from rlpost.choices import OldLogprobs
from rlpost.metrics import Metrics
from rlpost.schema import RunConfig
from rlpost.simulation.clock import virtual_loop
from rlpost.simulation.rates import Rates
from rlpost.simulation.sampling import SimulatedRollouts
from rlpost.types import Trajectory

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
