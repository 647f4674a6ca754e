"""From trajectories to what each learner rank trains on, normalised over the whole minibatch.

Shapes: B sequences, T tokens of the longest sequence of a batch (prompt and response, padded on
the right). Every per-token tensor is aligned with `token_ids`: column t speaks of the token at t,
so `logprobs[b, t] = log pi(token_ids[b, t] | token_ids[b, :t])`, and column 0 is never trained.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlpost.balance import deal, fill_rows, fill_tables, split_to
from rlpost.choices import Reduction
from rlpost.objectives import build_from
from rlpost.reduction import token_weights
from rlpost.schema import RunConfig
from rlpost.types import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Sequences that go through the model together.

    `weights` are the tokens' shares in the global mean (see `rlpost.reduction`), so the losses of
    micro-batches and ranks add. `loss_mask` is True on trained tokens only, and False in column 0.
    `fresh` is True on those that the step's own starting weights have sampled.
    """

    token_ids: Int[Tensor, "B T"]
    attention_mask: Bool[Tensor, "B T"]
    loss_mask: Bool[Tensor, "B T"]
    weights: Float[Tensor, "B T"]
    advantages: Float[Tensor, "B T"]
    behavior_logprobs: Float[Tensor, "B T"]
    fresh: Bool[Tensor, "B T"]
    ref_logprobs: Float[Tensor, "B T"] | None = None

    def to(self, device: torch.device | str) -> Self:
        """Return the same micro-batch on another device."""
        moved = {
            name: value.to(device)
            for name in self.__slots__
            if isinstance(value := getattr(self, name), Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankBatch:
    """One learner rank's share of a step: `minibatches[u]` are the micro-batches of update u.

    Every rank has the same number of minibatches, and in each the same number of micro-batches:
    sharded parameters are gathered in lockstep.
    """

    minibatches: tuple[tuple[MicroBatch, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A trajectory with what the step has computed for it."""

    trajectory: Trajectory
    advantage: float
    ref_logprobs: tuple[float, ...] | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and response together."""
        return len(self.trajectory.prompt_ids) + len(self.trajectory.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """How a step's samples are cut: updates an epoch, ranks, the size of a micro-batch.

    A micro-batch has `micro_batch_size` sequences or, where that is given, `micro_batch_tokens`
    tokens, padding included; with `packing` there is none. `version` is that of the weights that
    the step starts from; without it all tokens count as sampled by them.
    """

    num_minibatches: int
    num_ranks: int
    micro_batch_size: int
    reduction: str
    max_response_tokens: int
    micro_batch_tokens: int | None = None
    packing: bool = False
    version: int | None = None


def batch_plan(config: RunConfig, num_ranks: int) -> BatchPlan:
    """Return a recipe's plan."""
    reduction = config.reduction.value
    if config.reduction is Reduction.auto:
        reduction = build_from(config.objective).default_reduction
    return BatchPlan(
        num_minibatches=config.minibatches,
        num_ranks=num_ranks,
        micro_batch_size=config.learner.micro_batch_size,
        micro_batch_tokens=config.learner.micro_batch_tokens,
        packing=config.learner.packing,
        reduction=reduction,
        max_response_tokens=config.sampling.max_response_tokens,
    )


def build_batches(samples: Sequence[Sample], plan: BatchPlan, seed: int) -> list[RankBatch]:
    """Return one `RankBatch` a rank; a seed gives the same minibatches for any ranks.

    Samples are shuffled into minibatches, so that a group is not confined to one of them. In a
    minibatch, sequences are dealt to ranks of equal load, and neighbours in length share a
    micro-batch, so that little is padding.
    """
    ranks: list[list[tuple[MicroBatch, ...]]] = [[] for _ in range(plan.num_ranks)]
    for cut in cut_batches([sample.num_tokens for sample in samples], plan, seed):
        members = [i for bins in cut for micro in bins for i in micro]
        shares = _weights([samples[i] for i in members], plan) if members else []
        rows = {i: (samples[i], share) for i, share in zip(members, shares, strict=True)}
        stand_in = min(rows.values(), key=lambda row: row[0].num_tokens, default=None)
        for rank, bins in enumerate(cut):
            ranks[rank].append(
                tuple(
                    _micro_batch([rows[i] for i in micro], stand_in, plan.version) for micro in bins
                )
            )
    return [RankBatch(minibatches=tuple(minibatches)) for minibatches in ranks]


def cut_batches(lengths: Sequence[int], plan: BatchPlan, seed: int) -> list[list[list[list[int]]]]:
    """Return the indices of each micro-batch, as `[minibatch][rank][micro-batch]`.

    Every rank has as many micro-batches as the others, some of them perhaps empty.
    """
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    return [
        _cut(order[i :: plan.num_minibatches], lengths, plan) for i in range(plan.num_minibatches)
    ]


def _cut(members: list[int], lengths: Sequence[int], plan: BatchPlan) -> list[list[list[int]]]:
    """Return each rank's micro-batches of a minibatch, as many on every rank."""
    ordered = sorted(members, key=lambda i: -lengths[i])
    cuts = _cuts([lengths[i] for i in ordered], plan)
    num_micros = max(len(bins) for bins in cuts)
    cuts = [split_to(bins, num_micros) for bins in cuts]
    return [
        [[ordered[i] for i in micro] for micro in bins] + [[]] * (num_micros - len(bins))
        for bins in cuts
    ]


def _cuts(lengths: list[int], plan: BatchPlan) -> list[list[list[int]]]:
    """Return each rank's bins of indices into lengths that fall."""
    if plan.micro_batch_tokens is None:
        shares = [list(range(rank, len(lengths), plan.num_ranks)) for rank in range(plan.num_ranks)]
        size = plan.micro_batch_size
        return [[share[i : i + size] for i in range(0, len(share), size)] for share in shares]
    fill = fill_rows if plan.packing else fill_tables
    return [
        [
            [share[i] for i in members]
            for members in fill([lengths[i] for i in share], plan.micro_batch_tokens)
        ]
        for share in deal(lengths, plan.num_ranks)
    ]


def _weights(samples: list[Sample], plan: BatchPlan) -> list[Tensor]:
    """Return each sample's token weights over its response, global over the minibatch."""
    longest = max(len(sample.trajectory.token_ids) for sample in samples)
    mask = torch.zeros(len(samples), longest, dtype=torch.bool)
    for row, sample in enumerate(samples):
        mask[row, : len(sample.trajectory.token_ids)] = torch.tensor(sample.trajectory.loss_mask)
    return list(token_weights(plan.reduction, mask, plan.max_response_tokens))


def _micro_batch(
    rows: list[tuple[Sample, Tensor]],
    stand_in: tuple[Sample, Tensor] | None,
    version: int | None = None,
) -> MicroBatch:
    """Pad rows into tensors; an empty share becomes one untrained row, to keep ranks in step."""
    trained = bool(rows)
    if not rows:
        assert stand_in is not None, "a minibatch has samples"
        rows = [stand_in]
    shape = (len(rows), max(sample.num_tokens for sample, _ in rows))
    token_ids = torch.zeros(shape, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.bool)
    loss_mask = torch.zeros(shape, dtype=torch.bool)
    fresh = torch.zeros(shape, dtype=torch.bool)
    weights, advantages, behavior, reference = (torch.zeros(shape) for _ in range(4))
    for row, (sample, share) in enumerate(rows):
        trajectory = sample.trajectory
        start, end = len(trajectory.prompt_ids), sample.num_tokens
        token_ids[row, :end] = torch.tensor(trajectory.prompt_ids + trajectory.token_ids)
        attention_mask[row, :end] = True
        behavior[row, start:end] = torch.tensor(trajectory.behavior_logprobs)
        if sample.ref_logprobs is not None:
            reference[row, start:end] = torch.tensor(sample.ref_logprobs)
        if trained:
            loss_mask[row, start:end] = torch.tensor(trajectory.loss_mask)
            versions = torch.tensor(trajectory.weight_versions)
            fresh[row, start:end] = loss_mask[row, start:end] & (
                torch.tensor(True) if version is None else versions == version
            )
            weights[row, start:end] = share[: end - start].to(torch.float32)
            advantages[row, start:end] = sample.advantage
    return MicroBatch(
        token_ids=token_ids,
        attention_mask=attention_mask,
        loss_mask=loss_mask,
        weights=weights,
        advantages=advantages,
        behavior_logprobs=behavior,
        fresh=fresh,
        ref_logprobs=reference if rows[0][0].ref_logprobs is not None else None,
    )


def reference_batches(
    trajectories: Sequence[Trajectory], micro_batch_size: int
) -> Iterator[tuple[list[int], MicroBatch]]:
    """Yield micro-batches of trajectories of similar length, each with its rows' indices."""
    lengths = [len(t.prompt_ids) + len(t.token_ids) for t in trajectories]
    order = sorted(range(len(trajectories)), key=lambda index: -lengths[index])
    for start in range(0, len(order), micro_batch_size):
        indices = order[start : start + micro_batch_size]
        samples = [Sample(trajectory=trajectories[i], advantage=0.0) for i in indices]
        rows = [(sample, torch.zeros(len(sample.trajectory.token_ids))) for sample in samples]
        yield indices, _micro_batch(rows, rows[0])
