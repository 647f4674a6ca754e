"""The learner's arithmetic on a GPU against the same on a CPU, in float64 where that is exact."""

import pytest
import torch

from actors.fingerprint import fingerprint
from rlpost.logprobs import from_logits, token_logprobs
from rlpost.objective_configs import objective_configs
from rlpost.objectives import ObjectiveInputs, build
from rlpost.reduction import token_weights

pytestmark = pytest.mark.gpu

B, T, H, V = 4, 33, 64, 1000
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of a logprob, in nats


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("vocab_chunk_size", [96, None])
def test_logprobs_equal_those_of_float64_on_a_cpu(device, dtype, vocab_chunk_size):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(B, T, H, generator=generator).to(dtype)
    weight = (0.2 * torch.randn(V, H, generator=generator)).to(dtype)
    tokens = torch.randint(0, V, (B, T), generator=generator)
    upstream = torch.randn(B, T, generator=generator)
    upstream[:, 0] = 0.0

    exact = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    expected, expected_entropy = from_logits(exact[0] @ exact[1].T, tokens, 0.7)
    gradients = torch.autograd.grad((expected * upstream).sum(), exact)

    leaves = [one.to(device).requires_grad_() for one in (hidden, weight)]
    found, entropy = token_logprobs(
        *leaves,
        tokens.to(device),
        temperature=0.7,
        chunk_size=50,
        vocab_chunk_size=vocab_chunk_size,
    )
    limit = TOLERANCE[dtype]
    torch.testing.assert_close(found.cpu().double(), expected, atol=limit, rtol=limit)
    torch.testing.assert_close(entropy.cpu().double(), expected_entropy, atol=limit, rtol=limit)
    for one, other in zip(
        torch.autograd.grad((found * upstream.to(device)).sum(), leaves), gradients, strict=True
    ):
        assert float((one.cpu().double() - other).norm() / other.norm()) < limit


def test_logprobs_of_a_large_vocabulary_need_a_small_part_of_all_logits(device):
    tokens, vocabulary, width = 8192, 151_936, 1024
    hidden = torch.randn(1, tokens, width, device=device, dtype=torch.bfloat16).requires_grad_()
    weight = torch.randn(vocabulary, width, device=device, dtype=torch.bfloat16).requires_grad_()
    token_ids = torch.randint(0, vocabulary, (1, tokens), device=device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    logprobs, _ = token_logprobs(hidden, weight, token_ids)
    logprobs.sum().backward()
    peak = torch.cuda.max_memory_allocated(device) - before
    all_logits = 4 * tokens * vocabulary
    assert peak < all_logits / 3


@pytest.mark.parametrize("name", sorted(set(objective_configs) - {"custom"}))
def test_objectives_equal_those_on_a_cpu(device, name):
    generator = torch.Generator().manual_seed(1)
    old = torch.randn(B, T, generator=generator, dtype=torch.float64) - 2
    drift = 0.5 * torch.randn(B, T, generator=generator, dtype=torch.float64)
    mask = torch.rand(B, T, generator=generator) < 0.7
    advantages = torch.randn(B, generator=generator, dtype=torch.float64)

    def loss_and_gradient(place, dtype):
        logprobs = (old + drift).to(place, dtype).requires_grad_()
        inputs = ObjectiveInputs(
            logprobs=logprobs,
            old_logprobs=old.to(place, dtype),
            advantages=advantages.to(place, dtype),
            loss_mask=mask.to(place),
            weights=token_weights("sequence_mean", mask).to(place, dtype),
        )
        loss = build(name)(inputs, step=100).loss
        loss.backward()
        return loss.detach().cpu().double(), logprobs.grad.cpu().double()

    found = loss_and_gradient(device, torch.float32)
    expected = loss_and_gradient("cpu", torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
@pytest.mark.parametrize("size", [1, 4097, 3 * 2**20 + 5])
def test_fingerprints_equal_those_on_a_cpu(device, dtype, size):
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(size)).to(dtype)
    assert fingerprint(tensor.to(device)) == fingerprint(tensor)
