"""Token weights by hand and by a loop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlpost.errors import ConfigError
from rlpost.reduction import MODES, token_weights

MASK = torch.tensor([[True, True, False, True], [True, False, False, False], [False] * 4])


@pytest.mark.parametrize(
    ("mode", "first", "second"),
    [
        ("token_mean", 1 / 4, 1 / 4),
        ("sequence_mean", 1 / 6, 1 / 2),
        ("constant_length", 1 / 20, 1 / 20),
    ],
)
def test_token_weights_by_hand(mode, first, second):
    weights = token_weights(mode, MASK, 10)
    assert weights.dtype is torch.float64
    assert weights[0].tolist() == pytest.approx([first, first, 0.0, first], rel=1e-15)
    assert weights[1].tolist() == pytest.approx([second, 0.0, 0.0, 0.0], rel=1e-15)
    assert weights[2].tolist() == [0.0] * 4


def reduced(mode, losses, mask, max_response_tokens):
    """Return the reduced loss, one scalar at a time."""
    rows = []
    for row, trained in zip(losses, mask, strict=True):
        kept = [loss for loss, use in zip(row, trained, strict=True) if use]
        if kept:
            rows.append(kept)
    if not rows:
        return 0.0
    if mode == "token_mean":
        return sum(map(sum, rows)) / sum(map(len, rows))
    if mode == "sequence_mean":
        return sum(sum(row) / len(row) for row in rows) / len(rows)
    return sum(sum(row) / max_response_tokens for row in rows) / len(rows)


@st.composite
def minibatches(draw):
    """Draw losses and masks with holes and untrained rows."""
    length = draw(st.integers(1, 200))
    rows = draw(st.integers(1, 6))
    rng = draw(st.randoms(use_true_random=False))
    density = draw(st.sampled_from([0.0, 0.1, 0.7, 1.0]))
    losses = [[rng.uniform(-30.0, 30.0) for _ in range(length)] for _ in range(rows)]
    mask = [[rng.random() < density for _ in range(length)] for _ in range(rows)]
    return losses, mask


@pytest.mark.parametrize("mode", MODES)
@given(minibatch=minibatches())
def test_the_weighted_sum_equals_a_loop_over_scalars(mode, minibatch):
    losses, mask = minibatch
    weights = token_weights(mode, torch.tensor(mask), 210)
    for dtype, digits in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        values = torch.tensor(losses, dtype=dtype, requires_grad=True)
        total = (weights.to(dtype) * values).sum()
        total.backward()
        expected = reduced(mode, losses, mask, 210)
        sizes = [[abs(loss) for loss in row] for row in losses]  # cancellation costs digits
        scale = digits * reduced(mode, sizes, mask, 210) + 1e-30
        assert total.item() == pytest.approx(expected, rel=digits, abs=scale)
        assert torch.equal(values.grad, weights.to(dtype))


@pytest.mark.parametrize("mode", ["token_mean", "sequence_mean"])
def test_the_mean_of_a_constant_is_the_constant(mode):
    mask = torch.rand(16, 40, generator=torch.Generator().manual_seed(0)) < 0.3
    assert float(token_weights(mode, mask).sum()) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("mode", ["token_mean", "sequence_mean", "constant_length"])
def test_padding_and_untrained_rows_change_nothing(mode):
    wider = torch.zeros(5, 9, dtype=torch.bool)
    wider[:3, :4] = MASK
    padded = token_weights(mode, wider, 10)
    assert torch.equal(padded[:3, :4], token_weights(mode, MASK, 10))
    assert float(padded[3:].sum()) == 0.0


@pytest.mark.parametrize("mode", ["token_mean", "sequence_mean", "constant_length"])
def test_a_minibatch_without_trained_tokens_weighs_nothing(mode):
    assert token_weights(mode, torch.zeros(2, 3, dtype=torch.bool), 10).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("length", [None, 0, -5])
def test_constant_length_needs_a_length(length):
    with pytest.raises(ConfigError, match="max_response_tokens"):
        token_weights("constant_length", MASK, length)


def test_an_unknown_reduction_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="available: token_mean"):
        token_weights("mean", MASK)
