"""Objectives against independent scalar arithmetic in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpost.errors import ConfigError
from rlpost.objectives import ObjectiveInputs, build
from rlpost.objectives.holder import holder_log_mean, token_shares
from rlpost.objectives.schedules import Schedule, scheduled
from rlpost.reduction import token_weights


def inputs(log_ratio, advantages, mask, mode="sequence_mean", dtype=torch.float64):
    old = torch.full(log_ratio.shape, -1.0, dtype=dtype)
    logprobs = (old + log_ratio.to(dtype)).requires_grad_()
    weights = token_weights(mode, mask).to(dtype)
    made = ObjectiveInputs(
        logprobs=logprobs,
        old_logprobs=old,
        advantages=advantages.to(dtype),
        loss_mask=mask,
        weights=weights,
    )
    return made, logprobs


def random_case(seed, rows=4, columns=7, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    log_ratio = scale * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    advantages = torch.randn(rows, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, columns, generator=generator) < 0.7
    mask[-1] = False
    return log_ratio, advantages, mask


def clip_by_hand(d, a):
    return -min(math.exp(d) * a, min(max(math.exp(d), 0.8), 1.2) * a)


def mhpo_by_hand(d, a):
    psi = 1.5 * math.tanh(d / 1.5)
    rising = math.log1p(math.exp(psi)) ** 1.5
    falling = (math.log1p(math.exp(-psi)) / 0.8) ** 2
    return -math.exp(psi - rising - falling) * a


@pytest.mark.parametrize(("name", "by_hand"), [("clip", clip_by_hand), ("mhpo", mhpo_by_hand)])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_token_objectives_equal_a_loop_over_scalars(name, by_hand, seed):
    log_ratio, advantages, mask = random_case(seed)
    made, _ = inputs(log_ratio, advantages, mask)
    rows = [i for i in range(len(mask)) if mask[i].any()]
    expected = sum(
        by_hand(float(log_ratio[i, t]), float(advantages[i])) / int(mask[i].sum()) / len(rows)
        for i in rows
        for t in range(mask.shape[1])
        if mask[i, t]
    )
    assert float(build(name)(made).loss.detach()) == pytest.approx(expected, rel=1e-10, abs=1e-12)


@given(seed=st.integers(0, 10_000), p=st.sampled_from([-2.0, -0.5, 0.0, 0.7, 1.0, 2.0]))
@settings(max_examples=40, deadline=None)
def test_holder_equals_a_power_mean_by_hand(seed, p):
    log_ratio, advantages, mask = random_case(seed, scale=0.3)
    made, _ = inputs(log_ratio, advantages, mask)
    terms = []
    for i in range(len(mask)):
        ratios = [math.exp(float(d)) for d in log_ratio[i][mask[i]]]
        if ratios:
            if p == 0:
                rho = math.exp(sum(math.log(r) for r in ratios) / len(ratios))
            else:
                rho = (sum(r**p for r in ratios) / len(ratios)) ** (1 / p)
            a = float(advantages[i])
            terms.append(-min(rho * a, min(max(rho, 0.8), 1.2) * a))
    loss = build("holder", p=p, p_schedule=Schedule.constant)(made).loss
    assert float(loss.detach()) == pytest.approx(sum(terms) / len(terms), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("name", ["clip", "mhpo", "holder", "reinforce"])
def test_a_minibatch_cut_in_two_has_the_same_loss_and_gradient(name):
    log_ratio, advantages, mask = random_case(3, rows=6)
    made, logprobs = inputs(log_ratio, advantages, mask)
    whole = build(name)(made, step=100).loss
    whole.backward()
    parts = 0.0
    for rows in (slice(0, 2), slice(2, 6)):
        piece = logprobs.detach()[rows].clone().requires_grad_()
        output = build(name)(
            ObjectiveInputs(
                logprobs=piece,
                old_logprobs=made.old_logprobs[rows],
                advantages=made.advantages[rows],
                loss_mask=mask[rows],
                weights=made.weights[rows],
            ),
            step=100,
        )
        output.loss.backward()
        torch.testing.assert_close(piece.grad, logprobs.grad[rows])
        parts += float(output.loss)
    assert parts == pytest.approx(float(whole), rel=1e-12)


def test_mhpo_on_policy_multiplier_is_the_published_number():
    one = torch.zeros(1, dtype=torch.float64)
    assert float(build("mhpo").gradient_multiplier(one, one)) == pytest.approx(0.2651, abs=5e-5)
    normalized = build("mhpo", normalize_at_one=True)
    assert float(normalized.gradient_multiplier(one, one)) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("name", ["clip", "mhpo", "holder"])
def test_the_gradient_is_the_multiplier_times_the_advantage(name):
    log_ratio, advantages, mask = random_case(5, scale=0.2)
    made, logprobs = inputs(log_ratio, advantages, mask)
    objective = build(name)
    objective(made, step=50).loss.backward()
    _, multiplier, _ = objective.terms(made, 50, None)
    expected = -multiplier * made.weights * advantages[:, None]
    torch.testing.assert_close(logprobs.grad, expected.detach().where(mask, 0.0))


@pytest.mark.parametrize("name", ["clip", "mhpo", "holder", "reinforce"])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_nothing_infinite_from_extreme_ratios_or_nan_under_a_false_mask(name, size):
    mask = torch.tensor([[True, True, False], [True, True, False], [False, False, False]])
    log_ratio = torch.tensor([[size, -size, 0.0]] * 3, dtype=torch.float32)
    made, logprobs = inputs(log_ratio, torch.tensor([1.0, -1.0, 1.0]), mask, dtype=torch.float32)
    with torch.no_grad():
        logprobs[~mask] = float("nan")
    loss = build(name)(made, step=10).loss
    loss.backward()
    assert bool(loss.isfinite())
    assert bool(logprobs.grad.isfinite().all())


def test_holder_limits_and_shares():
    log_ratio = torch.tensor([[0.3, -0.2, 0.5]], dtype=torch.float64)
    mask = torch.ones_like(log_ratio, dtype=torch.bool)
    means = [float(holder_log_mean(log_ratio, mask, p)) for p in (-200.0, -2, 0.0, 1e-5, 2, 200.0)]
    assert means == sorted(means)
    assert means[0] == pytest.approx(-0.2, abs=0.01)
    assert means[-1] == pytest.approx(0.5, abs=0.01)
    shares = token_shares(log_ratio, mask, 1.7)
    assert float(shares.sum()) == pytest.approx(1.0)
    ratios = log_ratio.exp() ** 1.7
    torch.testing.assert_close(shares, ratios / ratios.sum())


@pytest.mark.parametrize(
    ("schedule", "start", "middle", "end"),
    [
        (Schedule.linear_dec, 2.0, 0.0, -2.0),
        (Schedule.linear, -2.0, 0.0, 2.0),
        (Schedule.cos, 2.0, 0.0, -2.0),
        (Schedule.sin, -2.0, 0.0, 2.0),
        (Schedule.quad, -2.0, -1.0, 2.0),
        (Schedule.quad_dec, 2.0, 1.0, -2.0),
        (Schedule.cubic, -2.0, 0.0, 2.0),
        (Schedule.cubic_dec, 2.0, 0.0, -2.0),
    ],
)
def test_schedules_start_and_end_where_they_should(schedule, start, middle, end):
    values = [scheduled(schedule, x, -2.0, 2.0) for x in (0.0, 0.5, 1.0, 7.0)]
    assert values == pytest.approx([start, middle, end, end], abs=1e-12)


@pytest.mark.parametrize(
    ("name", "wrong", "field"),
    [
        ("clip", {"eps_low": 1.5}, "objective.eps_low"),
        ("clip", {"dual_clip": 0.5}, "objective.dual_clip"),
        ("mhpo", {"c": 0.0}, "objective.c"),
        ("holder", {"p_min": 3.0}, "objective.p_min"),
    ],
)
def test_impossible_hyperparameters_are_named(name, wrong, field):
    with pytest.raises(ConfigError, match=field):
        build(name, **wrong)


def test_an_unknown_objective_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="available: clip"):
        build("ppo2")
