"""KL estimators by hand, and at the edges of floating point."""

import math

import pytest
import torch

from rlpost.errors import ConfigError
from rlpost.kl import kl


def gradient(estimator, d, dtype=torch.float64):
    logprobs = torch.tensor([[d]], dtype=dtype, requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    value = kl(estimator, logprobs, torch.zeros(1, 1, dtype=dtype), mask)
    value.sum().backward()
    return float(value.detach()), float(logprobs.grad)


@pytest.mark.parametrize("d", [-30.0, -1.0, -1e-9, 0.0, 0.5, 30.0])
def test_values_and_gradients_by_hand(d):
    assert gradient("k1", d) == (d, 1.0)
    assert gradient("k2", d) == pytest.approx((d * d / 2, d), rel=1e-12)
    k3 = (math.expm1(-d) + d, 1 - math.exp(-d))
    assert gradient("k3", d) == pytest.approx(k3, rel=1e-10, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("d", [-1e4, 1e4])
def test_extremes_stay_finite_and_never_push_away_from_the_reference(estimator, dtype, d):
    value, slope = gradient(estimator, d, dtype)
    assert math.isfinite(value)
    assert math.isfinite(slope)
    assert estimator == "k1" or slope * d >= 0


def test_bfloat16_is_computed_in_float32():
    mask = torch.ones(1, 1, dtype=torch.bool)
    ours = torch.tensor([[-1.0]], dtype=torch.bfloat16)
    assert kl("k2", ours, torch.zeros_like(ours), mask).dtype is torch.float32


def test_the_reference_gets_no_gradient_and_a_masked_nan_goes_nowhere():
    logprobs = torch.tensor([[1.0, math.nan]], requires_grad=True)
    reference = torch.tensor([[0.5, math.nan]], requires_grad=True)
    value = kl("k3", logprobs, reference, torch.tensor([[True, False]]))
    assert value[0, 1] == 0.0
    value.sum().backward()
    assert bool(logprobs.grad.isfinite().all())
    assert logprobs.grad[0, 1] == 0.0
    assert reference.grad is None


def test_an_unknown_estimator_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="available: k1, k2, k3"):
        kl("k4", torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))
