"""Objectives' values and gradients against loops over scalars, written from the formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpost.objectives import ObjectiveInputs, build
from rlpost.reduction import token_weights

OLD = -1.25


def clip(d, a, low=0.2, high=0.2, dual=None):
    r = math.exp(d)
    bounded = min(max(r, 1 - low), 1 + high)
    gain = min(r * a, bounded * a)
    binds = r > 1 + high if a > 0 else r < 1 - low
    if dual is not None and a < 0 and gain < dual * a:
        gain, binds = dual * a, True
    return -gain, 0.0 if binds else -r * a


def mhpo(d, a):
    psi = 1.5 * math.tanh(d / 1.5)
    zeta = math.log1p(math.exp(psi)) ** 1.5 + (math.log1p(math.exp(-psi)) / 0.8) ** 2
    value = -math.exp(psi - zeta) * a
    return value, value * (1 - math.tanh(d / 1.5) ** 2)


def cispo(d, a):
    weight = min(math.exp(d), 6.0)
    return -weight * a * (OLD + d), -weight * a


def sapo(d, a):
    tau = 1.0 if a > 0 else 1.05
    r = math.exp(d)
    gate = 1 / (1 + math.exp(-tau * (r - 1)))
    return -4 / tau * gate * a, -4 * gate * (1 - gate) * r * a


def hoelder_mean(ds, p):
    """Return the mean ratio and its tokens' shares; ratios scaled so that none overflows."""
    if p == 0:
        return math.exp(math.fsum(ds) / len(ds)), [1 / len(ds)] * len(ds)
    top = max(p * d for d in ds)
    powers = [math.exp(p * d - top) for d in ds]
    total = math.fsum(powers)
    return math.exp((top + math.log(total / len(ds))) / p), [power / total for power in powers]


def sequence_clip(ds, a, p, low=0.2, high=0.2):
    rho, shares = hoelder_mean(ds, p)
    bounded = min(max(rho, 1 - low), 1 + high)
    binds = rho > 1 + high if a > 0 else rho < 1 - low
    return -min(rho * a, bounded * a), [0.0 if binds else -rho * w * a for w in shares]


def token_clip(ds, a, p, low, high):
    """Clip log-ratios above for A > 0 and below otherwise, then take the mean."""
    es = [min(d, high) if a >= 0 else max(d, low) for d in ds]
    rho, shares = hoelder_mean(es, p)
    slopes = [-rho * w * a if e == d else 0.0 for w, d, e in zip(shares, ds, es, strict=True)]
    return -rho * a, slopes


def both_clips(ds, a, p):
    bound = math.log(1.2)
    es = [min(max(d, -bound), bound) for d in ds]
    value, slopes = sequence_clip(es, a, p)
    return value, [s if d == e else 0.0 for s, d, e in zip(slopes, ds, es, strict=True)]


def token_mean(function):
    """Return term and slopes of a sequence: the mean over its tokens."""

    def both(ds, a, _):
        pairs = [function(d, a) for d in ds]
        n = len(ds)
        return math.fsum(v for v, _ in pairs) / n, [slope / n for _, slope in pairs]

    return both


SEQUENCES = {
    "clip": token_mean(clip),
    "clip_dual": token_mean(lambda d, a: clip(d, a, 0.1, 0.3, 3.0)),
    "mhpo": token_mean(mhpo),
    "mhpo_normalized": token_mean(lambda d, a: tuple(v / mhpo(0.0, -1.0)[0] for v in mhpo(d, a))),
    "cispo": token_mean(cispo),
    "sapo": token_mean(sapo),
    "reinforce": token_mean(lambda d, a: (-a * (OLD + d), -a)),
    "none": token_mean(lambda d, a: (-a * math.exp(d),) * 2),
    "holder": sequence_clip,
    "holder_token": lambda ds, a, p: token_clip(ds, a, p, math.log(0.8), math.log(1.2)),
    "holder_seq_token_clip": both_clips,
    "gspo": lambda ds, a, _: sequence_clip(ds, a, 0.0, 3e-4, 4e-4),
    "gmpo": lambda ds, a, _: token_clip(ds, a, 0.0, -0.4, 0.4),
}


def built(name, p=0.0):
    if name == "clip_dual":
        return build("clip", eps_low=0.1, eps_high=0.3, dual_clip=3.0)
    if name == "mhpo_normalized":
        return build("mhpo", normalize_at_one=True)
    return build(name, p=p, p_schedule="constant") if "holder" in name else build(name)


rows_of_tokens = st.lists(
    st.tuples(
        st.sampled_from([-2.0, -0.37, 0.0, 0.5, 1.0]),
        st.lists(st.tuples(st.floats(-30, 30), st.booleans()), min_size=1, max_size=200),
    ),
    min_size=1,
    max_size=4,
)


def tensors(rows, dtype):
    length = max(len(tokens) for _, tokens in rows)
    log_ratio = torch.zeros(len(rows), length, dtype=dtype)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, (_, tokens) in enumerate(rows):
        log_ratio[i, : len(tokens)] = torch.tensor([d for d, _ in tokens], dtype=dtype)
        mask[i, : len(tokens)] = torch.tensor([kept for _, kept in tokens])
    old = torch.full_like(log_ratio, OLD)
    return ObjectiveInputs(
        logprobs=(old + log_ratio).requires_grad_(),
        old_logprobs=old,
        advantages=torch.tensor([a for a, _ in rows], dtype=dtype),
        loss_mask=mask,
        weights=token_weights("sequence_mean", mask),
    )


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize(("dtype", "digits"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@given(rows=rows_of_tokens, p=st.sampled_from([-2.0, -0.5, -1e-4, 0.0, 1e-4, 0.7, 1.0, 2.0]))
@settings(max_examples=20)
def test_loss_and_gradient_equal_a_loop_over_scalars(name, dtype, digits, rows, p):
    inputs = tensors(rows, dtype)
    loss = built(name, p)(inputs).loss
    loss.backward()
    assert loss.dtype is dtype

    mask = inputs.loss_mask
    trained = [i for i in range(len(rows)) if mask[i].any()]
    # The very log-ratios that the tensors hold: what subtraction rounds is no objective's error.
    log_ratio = (inputs.logprobs.detach() - inputs.old_logprobs).double()
    gradient, values = torch.zeros_like(log_ratio), []
    for i in trained:
        value, slopes = SEQUENCES[name](log_ratio[i][mask[i]].tolist(), rows[i][0], p)
        values.append(value / len(trained))
        gradient[i][mask[i]] = torch.tensor(slopes, dtype=torch.float64) / len(trained)
    size = max(1.0, *(abs(value) for value in values)) if values else 1.0
    assert float(loss.detach()) == pytest.approx(math.fsum(values), rel=digits, abs=digits * size)
    torch.testing.assert_close(inputs.logprobs.grad.double(), gradient, rtol=digits, atol=digits)


def mhpo_held(start):
    psi = 1.5 * (start / 1.5).tanh()
    hazard = torch.nn.functional.softplus(psi) ** 1.5
    hazard = hazard + (torch.nn.functional.softplus(-psi) / 0.8) ** 2
    return lambda _, d: (1.5 * (d / 1.5).tanh() - hazard).exp()


SEMI_GRADIENTS = {
    "mhpo": mhpo_held,
    "mhpo_normalized": lambda start: (
        lambda logprobs, d: mhpo_held(start)(logprobs, d) / -mhpo(0.0, 1.0)[0]
    ),
    "cispo": lambda start: lambda logprobs, _: start.exp().clamp(max=6.0) * logprobs,
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_gradients_agree_with_finite_differences(name):
    generator = torch.Generator().manual_seed(1)
    log_ratio = 0.1 * torch.randn(3, 6, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 6, generator=generator) < 0.7
    advantages = torch.tensor([1.0, -0.5, 0.0], dtype=torch.float64)
    objective, old = built(name, 1.4), torch.full_like(log_ratio, OLD)

    def loss(logprobs):
        return objective(
            ObjectiveInputs(
                logprobs=logprobs,
                old_logprobs=old,
                advantages=advantages,
                loss_mask=mask,
                weights=token_weights("sequence_mean", mask),
            )
        ).loss

    point = (old + log_ratio).requires_grad_()
    if name not in SEMI_GRADIENTS:
        assert torch.autograd.gradcheck(loss, point)
        return
    # Part of it is a constant to autograd: the differences are taken with that part held still.
    held = SEMI_GRADIENTS[name](log_ratio)

    def frozen(logprobs):
        terms = -held(logprobs, logprobs - old) * advantages[:, None]
        return (terms * token_weights("sequence_mean", mask)).sum()

    assert torch.autograd.gradcheck(frozen, point)
    (ours,) = torch.autograd.grad(loss(point), point)
    (expected,) = torch.autograd.grad(frozen(point), point)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)
