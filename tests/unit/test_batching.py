"""Batches: cut for any number of ranks, the weights and the trained tokens stay the same."""

import pytest
import torch

from rlpost.batching import BatchPlan, Sample, build_batches
from rlpost.types import Trajectory


def sample(index, length):
    return Sample(
        trajectory=Trajectory(
            prompt_ids=(1, 2),
            token_ids=tuple(range(10, 10 + length)),
            loss_mask=(True,) * length,
            behavior_logprobs=(-0.5 - index,) * length,
            weight_versions=(0,) * length,
            text="",
            finish_reason="stop",
        ),
        advantage=float(index),
    )


def plan(num_ranks, micro_batch_size, num_minibatches=2, **tokens):
    return BatchPlan(
        num_minibatches=num_minibatches,
        num_ranks=num_ranks,
        micro_batch_size=micro_batch_size,
        reduction="sequence_mean",
        max_response_tokens=9,
        **tokens,
    )


def trained(ranks, update):
    """Return (advantage, token, weight) of every trained token of an update."""
    rows = []
    for rank in ranks:
        for micro in rank.minibatches[update]:
            mask = micro.loss_mask
            columns = (micro.advantages[mask], micro.token_ids[mask], micro.weights[mask])
            rows += list(zip(*(c.tolist() for c in columns), strict=True))
    return sorted(rows)


@pytest.mark.parametrize(("num_ranks", "micro_batch_size"), [(1, 3), (2, 1), (2, 8), (4, 2)])
def test_ranks_and_micro_batches_change_nothing(num_ranks, micro_batch_size):
    samples = [sample(i, 1 + i % 5) for i in range(16)]
    reference = build_batches(samples, plan(1, 16), seed=7)
    ours = build_batches(samples, plan(num_ranks, micro_batch_size), seed=7)
    for update in range(2):
        assert trained(ours, update) == trained(reference, update)
        counts = {len(rank.minibatches[update]) for rank in ours}
        assert len(counts) == 1


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(("num_ranks", "tokens"), [(1, 1000), (1, 7), (2, 14), (3, 20), (5, 7)])
def test_micro_batches_of_so_many_tokens_change_nothing_either(num_ranks, tokens, packing):
    samples = [sample(i, 1 + i % 5) for i in range(16)]
    reference = build_batches(samples, plan(1, 16), seed=7)
    cut = plan(num_ranks, 1, micro_batch_tokens=tokens, packing=packing)
    ours = build_batches(samples, cut, seed=7)
    for update in range(2):
        assert trained(ours, update) == trained(reference, update)
        assert len({len(rank.minibatches[update]) for rank in ours}) == 1
        for micro in (micro for rank in ours for micro in rank.minibatches[update]):
            mask = micro.attention_mask
            assert (int(mask.sum()) if packing else mask.numel()) <= tokens


def test_weights_sum_to_one_over_a_minibatch_and_column_zero_is_untrained():
    ranks = build_batches([sample(i, 1 + i % 5) for i in range(16)], plan(2, 3), seed=1)
    for update in range(2):
        micros = [micro for rank in ranks for micro in rank.minibatches[update]]
        assert sum(float(m.weights.sum()) for m in micros) == pytest.approx(1.0, rel=1e-6)
        assert not any(bool(m.loss_mask[:, 0].any()) for m in micros)


def test_a_rank_without_sequences_gets_a_row_that_trains_nothing():
    ranks = build_batches([sample(0, 3)], plan(2, 4, num_minibatches=1), seed=1)
    (stand_in,) = ranks[1].minibatches[0]
    assert not bool(stand_in.loss_mask.any())
    assert float(stand_in.weights.abs().sum()) == 0.0
    assert torch.equal(stand_in.token_ids, ranks[0].minibatches[0][0].token_ids)
