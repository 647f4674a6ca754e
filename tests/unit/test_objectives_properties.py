"""What the papers' theorems and the interface promise of every objective."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpost.metrics import merged
from rlpost.objectives import ObjectiveInputs, build, objective_configs
from rlpost.objectives.holder_mean import holder_log_mean, token_shares
from rlpost.reduction import token_weights

NAMES = sorted(set(objective_configs) - {"custom"})


def random_inputs(seed, rows=6, columns=7, mode="sequence_mean", scale=0.5):
    generator = torch.Generator().manual_seed(seed)
    old = torch.randn(rows, columns, generator=generator, dtype=torch.float64) - 2
    mask = torch.rand(rows, columns, generator=generator) < 0.7
    mask[-1] = False
    drift = scale * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return ObjectiveInputs(
        logprobs=(old + drift).requires_grad_(),
        old_logprobs=old,
        advantages=torch.randn(rows, generator=generator, dtype=torch.float64),
        loss_mask=mask,
        weights=token_weights(mode, mask),
    )


def part(inputs, rows):
    return ObjectiveInputs(
        logprobs=inputs.logprobs.detach()[rows].clone().requires_grad_(),
        old_logprobs=inputs.old_logprobs[rows],
        advantages=inputs.advantages[rows],
        loss_mask=inputs.loss_mask[rows],
        weights=inputs.weights[rows],
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["token_mean", "sequence_mean", "constant_length"])
@pytest.mark.parametrize("cuts", [(2,), (1, 3), (1, 2, 3, 4, 5)])
def test_micro_batches_add_up_to_the_minibatch(name, mode, cuts):
    whole = random_inputs(3)
    whole = part(whole, slice(0, 6))
    object.__setattr__(whole, "weights", token_weights(mode, whole.loss_mask, 10))
    expected = build(name)(whole, step=100)
    expected.loss.backward()
    outputs, gradients = [], []
    for start, stop in pairwise((0, *cuts, 6)):
        piece = part(whole, slice(start, stop))
        outputs.append(build(name)(piece, step=100))
        outputs[-1].loss.backward()
        gradients.append(piece.logprobs.grad)
    total = math.fsum(float(output.loss.detach()) for output in outputs)
    assert total == pytest.approx(float(expected.loss.detach()), rel=1e-12)
    torch.testing.assert_close(torch.cat(gradients), whole.logprobs.grad, rtol=1e-12, atol=0.0)
    metrics = merged(output.metrics for output in outputs).values()
    assert metrics == pytest.approx(expected.metrics.values(), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_reported_multiplier_times_the_advantage(name):
    inputs = random_inputs(5)
    objective = build(name)
    objective(inputs, step=50).loss.backward()
    prepared = inputs.prepared()
    multiplier = objective.multiplier(prepared, objective.at_step(50))
    expected = -multiplier * prepared.weights * prepared.advantages
    torch.testing.assert_close(inputs.logprobs.grad, expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 50.0, 1e4])
@pytest.mark.parametrize("step", [0, 250, 500])
def test_nothing_infinite_from_extreme_ratios_or_nan_under_a_false_mask(name, dtype, size, step):
    mask = torch.tensor([[True, True, False]] * 3 + [[False] * 3])
    logprobs = torch.tensor([[size, -size, math.nan]] * 4, dtype=dtype, requires_grad=True)
    output = build(name)(
        ObjectiveInputs(
            logprobs=logprobs,
            old_logprobs=torch.where(mask, 0.0, math.nan).to(dtype),
            advantages=torch.tensor([1.0, -1.0, 0.0, math.nan], dtype=dtype),
            loss_mask=mask,
            weights=torch.where(mask, token_weights("sequence_mean", mask), math.nan),
        ),
        step=step,
    )
    output.loss.backward()
    assert output.loss.dtype is torch.float32
    assert bool(output.loss.isfinite())
    assert bool(logprobs.grad.isfinite().all())
    assert all(math.isfinite(value) for value in output.metrics.values().values())


def test_an_mhpo_without_its_parts_or_with_a_wide_bound_stays_finite():
    for options in ({"lfm": False}, {"dhp": False}, {"lfm": False, "dhp": False}, {"c": 100.0}):
        d = torch.tensor([-1e4, -90.0, 0.0, 90.0, 1e4], requires_grad=True)
        build("mhpo", **options).token_terms(d, torch.zeros(5), torch.ones(5)).sum().backward()
        assert bool(d.grad.isfinite().all()), options


def test_mhpo_multiplier_is_the_published_function():
    ratios = torch.tensor([1.0, 1.78, 0.1, 0.8, 1.2, 2.0, 10.0], dtype=torch.float64)
    multiplier = build("mhpo").gradient_multiplier(ratios.log(), torch.ones(()))
    assert torch.equal(build("mhpo").gradient_multiplier(ratios.log(), 1), multiplier)
    assert multiplier[:2].tolist() == pytest.approx([0.2651, 0.396], abs=5e-4)
    relative = (multiplier / multiplier[0])[2:].tolist()
    assert relative == pytest.approx([0.003, 0.675, 1.246, 1.474, 0.309], abs=6e-4)
    assert float(build("mhpo").on_policy_multiplier) == pytest.approx(0.2651, abs=5e-5)
    lfm_alone = build("mhpo", dhp=False).gradient_multiplier(
        torch.tensor(2.45, dtype=torch.float64).log(), torch.ones(())
    )
    assert float(lfm_alone) == pytest.approx(1.593, abs=5e-4)


def test_mhpo_normalized_at_one_is_the_same_function_at_equal_scale():
    d = torch.linspace(-3, 3, 13, dtype=torch.float64)
    plain, scaled = build("mhpo"), build("mhpo", normalize_at_one=True)
    ours = scaled.gradient_multiplier(d, torch.ones(()))
    expected = plain.gradient_multiplier(d, torch.ones(())) / plain.on_policy_multiplier
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0.0)
    assert float(ours[6]) == pytest.approx(1.0, rel=1e-12)
    assert scaled.on_policy_multiplier == 1.0


@given(
    c=st.floats(0.05, 20),
    k=st.tuples(st.floats(0.05, 10), st.floats(0.05, 10)),
    scale=st.tuples(st.floats(0.05, 10), st.floats(0.05, 10)),
    dhp=st.booleans(),
)
@settings(max_examples=60)
def test_mhpo_multiplier_never_exceeds_its_bound(c, k, scale, dhp):
    objective = build(
        "mhpo", c=c, k_pos=k[0], k_neg=k[1], lambda_pos=scale[0], lambda_neg=scale[1], dhp=dhp
    )
    d = torch.linspace(-40, 40, 401, dtype=torch.float64)
    multiplier = objective.gradient_multiplier(d, torch.ones(()))
    assert bool((multiplier >= 0).all())
    assert float(multiplier.max()) <= math.exp(c)


def test_the_sign_of_the_advantage_moves_the_clip_but_not_the_hazard():
    d = torch.tensor([-1.0, -0.1, 0.0, 0.1, 1.0, 2.0], dtype=torch.float64)
    plus, minus = torch.ones(()), -torch.ones(())
    mhpo, clip = build("mhpo"), build("clip", dual_clip=3.0)
    assert torch.equal(mhpo.gradient_multiplier(d, plus), mhpo.gradient_multiplier(d, minus))
    r = d.exp()
    inside = [True, True, True, True, False, False]
    torch.testing.assert_close(clip.gradient_multiplier(d, plus), r * torch.tensor(inside))
    inside = [False, True, True, True, True, False]
    torch.testing.assert_close(clip.gradient_multiplier(d, minus), r * torch.tensor(inside))
    assert build("reinforce").gradient_multiplier(d, plus).tolist() == [1.0] * 6


def test_the_multiplier_is_measured_without_a_gradient_context_and_leaves_no_trace():
    d = torch.zeros(3, requires_grad=True)
    with torch.no_grad():
        assert build("clip").gradient_multiplier(d, torch.ones(3)).tolist() == [1.0] * 3
    assert d.grad is None


def test_holder_mean_grows_with_p_between_its_limits():
    log_ratio = torch.tensor([[0.3, -0.2, 0.5, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    exponents = (-2e4, -200.0, -2.0, -1e-5, 0.0, 1e-5, 1.0, 2.0, 200.0, 2e4)
    means = [float(holder_log_mean(log_ratio, mask, p)) for p in exponents]
    assert means == sorted(means)
    assert means[0] == pytest.approx(-0.2, abs=1e-4)
    assert means[-1] == pytest.approx(0.5, abs=1e-4)
    assert means[4] == pytest.approx(0.2, rel=1e-12)
    assert means[6] == pytest.approx(math.log(sum(map(math.exp, (0.3, -0.2, 0.5))) / 3), rel=1e-12)


@pytest.mark.parametrize("p", [1e-5, -1e-3, 0.008, 0.5])
def test_holder_mean_keeps_float32_digits_where_p_crosses_zero(p):
    log_ratio = 0.3 * torch.randn(8, 200, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(log_ratio, dtype=torch.bool)
    exact = [math.fsum(math.exp(p * d) for d in row) / 200 for row in log_ratio.tolist()]
    expected = [math.log(mean) / p for mean in exact]
    assert holder_log_mean(log_ratio, mask, p).tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("p", [-2.0, 0.0, 1.7])
def test_holder_shares_are_its_gradient_and_sum_to_one(p):
    log_ratio = torch.tensor([[0.3, -0.2, 0.5], [0.1, 0.0, 0.0]], dtype=torch.float64)
    log_ratio.requires_grad_()
    mask = torch.tensor([[True, True, True], [True, True, False]])
    shares = token_shares(log_ratio.detach(), mask, p)
    torch.testing.assert_close(shares.sum(-1), torch.ones(2, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(holder_log_mean(log_ratio, mask, p).sum(), log_ratio)
    torch.testing.assert_close(gradient, shares)
    powers = torch.where(mask, log_ratio.detach().exp() ** p, 0.0)
    torch.testing.assert_close(shares, powers / powers.sum(-1, keepdim=True))


def test_holder_entropy_of_shares_falls_with_the_size_of_p():
    log_ratio = torch.tensor([[0.3, -0.2, 0.5, 0.1]], dtype=torch.float64)
    mask = torch.ones_like(log_ratio, dtype=torch.bool)
    for sign in (-1.0, 1.0):
        shares = [token_shares(log_ratio, mask, sign * p) for p in (0.0, 0.5, 1.0, 2.0, 8.0)]
        entropies = [float(-(w * w.log()).sum()) for w in shares]
        assert entropies == sorted(entropies, reverse=True)


def test_holder_gradient_on_policy_is_the_same_for_every_p():
    gradients = []
    for p in (-2.0, 0.0, 1.0, 2.0):
        inputs = random_inputs(8, scale=0.0)
        build("holder", p=p, p_schedule="constant")(inputs).loss.backward()
        gradients.append(inputs.logprobs.grad)
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-12, atol=1e-15)


def loss_and_gradient(name, inputs, **options):
    logprobs = inputs.logprobs.detach().clone().requires_grad_()
    loss = build(name, **options)(replace(inputs, logprobs=logprobs)).loss
    loss.backward()
    return loss.detach(), logprobs.grad


@pytest.mark.parametrize("scale", [0.0, 0.3, 2.0])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("holder_token", {"p": 1.0, "eps": 0.3}), ("clip", {"eps_low": 0.3, "eps_high": 0.3})),
        (("holder", {"p": 0.0, "eps": 0.3}), ("gspo", {"eps_low": 0.3, "eps_high": 0.3})),
        (("holder", {"p": 1e-7, "eps": 0.3}), ("gspo", {"eps_low": 0.3, "eps_high": 0.3})),
        (("mhpo", {"lfm": False, "dhp": False}), ("none", {})),
        (("clip", {"eps_low": 0.999999, "eps_high": 1e6}), ("none", {})),
    ],
    ids=str,
)
def test_objectives_that_are_the_same_function(one, other, scale):
    inputs = random_inputs(11, scale=scale)
    constant = {"p_schedule": "constant"} if "holder" in one[0] else {}
    ours, expected = (
        loss_and_gradient(name, inputs, **options)
        for name, options in ((one[0], one[1] | constant), other)
    )
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_holder_of_clipped_tokens_at_p_zero_is_gmpo_with_the_same_bound(sign):
    inputs = random_inputs(12, scale=2.0)
    inputs = replace(inputs, advantages=sign * inputs.advantages.abs())
    eps = 0.3
    log_clip = math.log1p(eps) if sign > 0 else -math.log1p(-eps)
    ours = loss_and_gradient("holder_token", inputs, p=0.0, p_schedule="constant", eps=eps)
    expected = loss_and_gradient("gmpo", inputs, log_clip=log_clip)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)


def test_the_sequence_clip_after_the_token_clip_cuts_nothing():
    inputs = random_inputs(13, scale=3.0)
    objective = build("holder_seq_token_clip", p=2.0, p_schedule="constant")
    bounded = (inputs.logprobs.detach() - inputs.old_logprobs).clamp(-math.log(1.2), math.log(1.2))
    rho = holder_log_mean(bounded, inputs.loss_mask, 2.0).exp()[:, None]
    terms = objective.terms(inputs.prepared(), {"p": 2.0})
    torch.testing.assert_close(terms, -rho * inputs.prepared().advantages)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"mhpo"}))
def test_every_objective_but_mhpo_has_the_plain_step_on_policy(name):
    assert build(name).on_policy_multiplier == pytest.approx(1.0, rel=1e-12)


def test_mhpo_modulation_is_odd_bounded_and_its_hazard_rises_away_from_one():
    d = torch.linspace(-30, 30, 2001, dtype=torch.float64)
    lfm = build("mhpo", dhp=False)
    psi = (-lfm.token_terms(d, 0 * d, torch.ones_like(d))).log()
    assert float(psi.abs().max()) <= 1.5
    torch.testing.assert_close(psi, -psi.flip(0))
    for side, option in ((d >= 0, "lambda_neg"), (d <= 0, "lambda_pos")):
        # With the other direction's scale out of the way, only one side of the hazard is left.
        alone = build("mhpo", **{option: 1e12})
        hazard = psi - (-alone.token_terms(d, 0 * d, torch.ones_like(d))).log()
        steps = hazard[side].diff()
        assert bool(((steps if option == "lambda_neg" else -steps) >= -1e-12).all())


def test_mhpo_hazard_adds_nothing_to_the_direction_of_the_gradient():
    inputs = random_inputs(14, scale=1.0)
    _, with_hazard = loss_and_gradient("mhpo", inputs)
    _, without = loss_and_gradient("mhpo", inputs, dhp=False)
    trained = without != 0
    scale = with_hazard[trained] / without[trained]
    psi = 1.5 * ((inputs.logprobs.detach() - inputs.old_logprobs) / 1.5).tanh()[trained]
    zeta = psi.exp().log1p() ** 1.5 + ((-psi).exp().log1p() / 0.8) ** 2
    torch.testing.assert_close(scale, (-zeta).exp(), rtol=1e-12, atol=0.0)


def test_reinforce_with_advantage_one_is_the_negative_log_likelihood():
    inputs = random_inputs(2, mode="token_mean")
    ones = torch.ones_like(inputs.advantages)
    object.__setattr__(inputs, "advantages", ones)
    expected = -inputs.logprobs.detach()[inputs.loss_mask].mean()
    torch.testing.assert_close(build("reinforce")(inputs).loss.detach(), expected)
