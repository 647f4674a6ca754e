"""Advantages, reductions, KL and chunked logprobs."""

import math

import pytest
import torch

from rlpost import logprobs as logprobs_module
from rlpost.advantages import compute
from rlpost.errors import ConfigError, DataError
from rlpost.kl import kl
from rlpost.logprobs import token_logprobs
from rlpost.reduction import token_weights


def test_grpo_by_hand():
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 5.0, 7.0], dtype=torch.float64)
    groups = torch.tensor([0, 0, 0, 0, 1, 1])
    std = math.sqrt(4 * 0.25 / 3)
    expected = [0.5 / std, -0.5 / std, -0.5 / std, 0.5 / std, -1 / math.sqrt(2), 1 / math.sqrt(2)]
    assert compute("grpo", rewards, groups).tolist() == pytest.approx(expected, rel=1e-7)
    assert compute("dr_grpo", rewards, groups).tolist() == [0.5, -0.5, -0.5, 0.5, -1.0, 1.0]


@pytest.mark.parametrize("name", ["grpo", "dr_grpo"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rewards_give_exactly_zero(name, dtype):
    rewards = torch.full((7,), 0.1 + 0.2, dtype=dtype)
    assert compute(name, rewards, torch.zeros(7, dtype=torch.int64)).tolist() == [0.0] * 7


@pytest.mark.parametrize(
    ("rewards", "groups", "said"),
    [
        ([1.0, 2.0, 3.0], [0, 0], "equally long"),
        ([1.0, math.nan], [0, 0], "reward 1 is nan"),
        ([1.0, 2.0, 3.0], [0, 0, 1], "one trajectory"),
    ],
)
def test_bad_rewards_are_refused(rewards, groups, said):
    with pytest.raises(DataError, match=said):
        compute("grpo", torch.tensor(rewards), torch.tensor(groups))


def test_token_weights_by_hand():
    mask = torch.tensor([[True, True, False, True], [True, False, False, False], [False] * 4])
    assert token_weights("token_mean", mask)[0].tolist() == [0.25, 0.25, 0.0, 0.25]
    sequence = token_weights("sequence_mean", mask)
    assert sequence[0].tolist() == pytest.approx([1 / 6, 1 / 6, 0.0, 1 / 6])
    assert sequence[1].tolist() == [0.5, 0.0, 0.0, 0.0]
    assert token_weights("constant_length", mask, 10)[0].tolist() == [0.05, 0.05, 0.0, 0.05]
    with pytest.raises(ConfigError, match="max_response_tokens"):
        token_weights("constant_length", mask)


def test_kl_by_hand_and_clamped():
    ours, theirs = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]])
    mask = torch.tensor([[True, True]])
    assert kl("k1", ours, theirs, mask).tolist() == [[0.5, -1.0]]
    assert kl("k2", ours, theirs, mask).tolist() == [[0.125, 0.5]]
    k3 = [math.exp(-0.5) - 1 + 0.5, math.exp(1.0) - 1 - 1.0]
    assert kl("k3", ours, theirs, mask)[0].tolist() == pytest.approx(k3, rel=1e-6)
    assert bool(kl("k3", torch.tensor([[-1e4]]), torch.tensor([[0.0]]), mask[:, :1]).isfinite())
    hidden = torch.tensor([[math.nan]])
    assert kl("k3", hidden, hidden, torch.tensor([[False]])).tolist() == [[0.0]]


@pytest.mark.parametrize("chunk", [1, 40, 2**22])
@pytest.mark.parametrize("with_bias", [True, False])
def test_chunked_logprobs_equal_full_logits(monkeypatch, chunk, with_bias):
    monkeypatch.setattr(logprobs_module, "_CHUNK_ELEMENTS", chunk)
    torch.manual_seed(0)
    hidden = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(11, dtype=torch.float64, requires_grad=True) if with_bias else None
    tokens = torch.randint(0, 11, (3, 5))
    mask = torch.rand(3, 5) < 0.7
    inputs = [hidden, weight] if bias is None else [hidden, weight, bias]
    upstream = torch.randn(3, 5, dtype=torch.float64)

    ours, entropy = token_logprobs(
        hidden, weight, tokens, bias=bias, temperature=0.7, loss_mask=mask
    )
    our_gradients = torch.autograd.grad((ours * upstream).sum(), inputs)

    logits = torch.nn.functional.linear(hidden[:, :-1], weight, bias) / 0.7
    scores = logits.log_softmax(-1)
    full = scores.gather(-1, tokens[:, 1:, None])[..., 0] * mask[:, 1:]
    gradients = torch.autograd.grad((full * upstream[:, 1:]).sum(), inputs)
    torch.testing.assert_close(ours[:, 1:], full)
    assert ours[:, 0].tolist() == [0.0] * 3
    expected_entropy = -(scores.exp() * scores).sum(-1) * mask[:, 1:]
    torch.testing.assert_close(entropy[:, 1:], expected_entropy)
    for ours_, expected in zip(our_gradients, gradients, strict=True):
        torch.testing.assert_close(ours_, expected)
