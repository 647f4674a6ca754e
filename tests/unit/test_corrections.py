"""Off-policy corrections against loops over scalars."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpost.corrections import correction_weights
from rlpost.errors import ConfigError

NAMES = ["none", "tis", "tis_seq", "icepop", "seq_mask"]


def by_hand(name, gaps):
    total = math.fsum(gaps)
    mean = math.exp(total / len(gaps))
    return {
        "none": [1.0] * len(gaps),
        "tis": [min(math.exp(g), 2.0) for g in gaps],
        "tis_seq": [min(math.exp(min(total, 40.0)), 2.0)] * len(gaps),
        "icepop": [math.exp(g) if 0.5 <= math.exp(g) <= 2.0 else 0.0 for g in gaps],
        "seq_mask": [float(0.5 <= mean <= 2.0)] * len(gaps),
    }[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "digits"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@given(
    rows=st.lists(
        st.lists(st.tuples(st.floats(-3, 3), st.booleans()), min_size=1, max_size=40),
        min_size=1,
        max_size=3,
    )
)
@settings(max_examples=30)
def test_weights_equal_a_loop_over_scalars(name, dtype, digits, rows):
    length = max(map(len, rows))
    old = torch.full((len(rows), length), math.nan, dtype=dtype)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, tokens in enumerate(rows):
        kept = [keep for _, keep in tokens]
        mask[row, : len(tokens)] = torch.tensor(kept)
        gaps = torch.tensor([gap for gap, _ in tokens], dtype=dtype)
        old[row, : len(tokens)] = torch.where(torch.tensor(kept), gaps, math.nan)
    weights = correction_weights(name, old.requires_grad_(), torch.zeros_like(old), mask)
    assert not weights.requires_grad
    assert weights.dtype is dtype
    assert bool((weights[~mask] == 0).all())
    for row in range(len(rows)):
        gaps = old.detach()[row][mask[row]].double().tolist()
        if gaps:
            ours = weights[row][mask[row]].tolist()
            assert ours == pytest.approx(by_hand(name, gaps), rel=digits)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gap", [-1e4, -90.0, 90.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_stay_finite(name, gap, dtype):
    old = torch.tensor([[gap, 0.0]], dtype=dtype)
    weights = correction_weights(name, old, torch.zeros_like(old), torch.ones(1, 2).bool())
    assert weights.dtype is torch.float32
    assert bool(weights.isfinite().all())
    assert float(weights.max()) <= 2.0


def test_bounds_are_the_callers():
    old = torch.tensor([[math.log(3.0), math.log(0.2)]], dtype=torch.float64)
    mask = torch.ones(1, 2, dtype=torch.bool)
    zero = torch.zeros_like(old)
    assert correction_weights("tis", old, zero, mask, cap=2.5)[0, 0] == 2.5
    kept = correction_weights("icepop", old, zero, mask, low=0.1, high=5.0)
    assert kept[0].tolist() == pytest.approx([3.0, 0.2])
    assert correction_weights("seq_mask", old, zero, mask, low=0.8)[0].tolist() == [0.0, 0.0]


def test_an_unknown_correction_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="available: none, tis"):
        correction_weights("mis", *(torch.zeros(1, 1),) * 2, torch.ones(1, 1).bool())
