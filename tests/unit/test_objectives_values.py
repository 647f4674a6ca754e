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


def holder(ds, a, p, eps=0.2):
    """Return the sequence's term and its slope in each d; ratios scaled so none overflows."""
    if p == 0:
        rho, shares = math.exp(math.fsum(ds) / len(ds)), [1 / len(ds)] * len(ds)
    else:
        top = max(p * d for d in ds)
        powers = [math.exp(p * d - top) for d in ds]
        total = math.fsum(powers)
        rho = math.exp((top + math.log(total / len(ds))) / p)
        shares = [power / total for power in powers]
    bounded = min(max(rho, 1 - eps), 1 + eps)
    binds = rho > 1 + eps if a > 0 else rho < 1 - eps
    return -min(rho * a, bounded * a), [0.0 if binds else -rho * w * a for w in shares]


def sequences(name, p=0.0):
    """Return term and slopes of a sequence, for a name: the mean over its tokens."""

    def token_mean(function):
        def both(ds, a):
            pairs = [function(d, a) for d in ds]
            n = len(ds)
            return math.fsum(v for v, _ in pairs) / n, [slope / n for _, slope in pairs]

        return both

    return {
        "clip": token_mean(clip),
        "clip_dual": token_mean(lambda d, a: clip(d, a, 0.1, 0.3, 3.0)),
        "mhpo": token_mean(mhpo),
        "holder": lambda ds, a: holder(ds, a, p),
        "reinforce": token_mean(lambda d, a: (-a * (OLD + d), -a)),
    }[name]


def built(name, p=0.0):
    if name == "clip_dual":
        return build("clip", eps_low=0.1, eps_high=0.3, dual_clip=3.0)
    return build(name, p=p, p_schedule="constant") if name == "holder" else build(name)


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


@pytest.mark.parametrize("name", ["clip", "clip_dual", "mhpo", "holder", "reinforce"])
@pytest.mark.parametrize(("dtype", "digits"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@given(rows=rows_of_tokens, p=st.sampled_from([-2.0, -0.5, -1e-4, 0.0, 1e-4, 0.7, 1.0, 2.0]))
@settings(max_examples=20, deadline=None)
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
        value, slopes = sequences(name, p)(log_ratio[i][mask[i]].tolist(), rows[i][0])
        values.append(value / len(trained))
        gradient[i][mask[i]] = torch.tensor(slopes, dtype=torch.float64) / len(trained)
    size = max(1.0, *(abs(value) for value in values)) if values else 1.0
    assert float(loss.detach()) == pytest.approx(math.fsum(values), rel=digits, abs=digits * size)
    torch.testing.assert_close(inputs.logprobs.grad.double(), gradient, rtol=digits, atol=digits)


@pytest.mark.parametrize("name", ["clip", "clip_dual", "mhpo", "holder", "reinforce"])
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
    if name == "mhpo":
        # Its hazard is a constant to autograd: the differences are taken with it held still.
        psi = 1.5 * (log_ratio / 1.5).tanh()
        held = torch.nn.functional.softplus(psi) ** 1.5
        held = held + (torch.nn.functional.softplus(-psi) / 0.8) ** 2

        def frozen(logprobs):
            terms = -(1.5 * ((logprobs - old) / 1.5).tanh() - held).exp() * advantages[:, None]
            return (terms * token_weights("sequence_mean", mask)).sum()

        assert torch.autograd.gradcheck(frozen, point)
        (ours,) = torch.autograd.grad(loss(point), point)
        (expected,) = torch.autograd.grad(frozen(point), point)
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)
    else:
        assert torch.autograd.gradcheck(loss, point)
