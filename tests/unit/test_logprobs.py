"""Chunked logprobs against full logits."""

import math

import pytest
import torch

from rlpost.logprobs import from_logits, token_logprobs

B, T, H, V = 3, 5, 4, 11


def case(dtype=torch.float64, *, with_bias=True):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    leaves = [normal(B, T, H), normal(V, H)] + ([normal(V)] if with_bias else [])
    tokens = torch.randint(0, V, (B, T), generator=generator)
    mask = torch.rand(B, T, generator=generator) < 0.7
    return [leaf.requires_grad_() for leaf in leaves], tokens, mask, normal(B, T)


def chunked(leaves, tokens, **options):
    hidden, weight, *bias = leaves
    return token_logprobs(hidden, weight, tokens, bias=bias[0] if bias else None, **options)


def test_from_logits_by_hand():
    logits = torch.tensor([[[0.0, math.log(3.0)], [9.0, 9.0]]], dtype=torch.float64)
    logprobs, entropy = from_logits(logits, torch.tensor([[0, 1]]))
    assert logprobs[0].tolist() == pytest.approx([0.0, math.log(0.75)])
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert entropy[0].tolist() == pytest.approx([0.0, expected])
    warmer, _ = from_logits(logits, torch.tensor([[0, 1]]), temperature=2.0)
    root = math.sqrt(3.0)
    assert float(warmer[0, 1]) == pytest.approx(math.log(root / (1 + root)))


@pytest.mark.parametrize("chunk_size", [1, 3, None])
@pytest.mark.parametrize("vocab_chunk_size", [1, 4, None])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_tiles_equal_full_logits(chunk_size, vocab_chunk_size, with_bias, temperature):
    leaves, tokens, mask, upstream = case(with_bias=with_bias)
    options = {"temperature": temperature, "loss_mask": mask, "chunk_size": chunk_size}
    options |= {"vocab_chunk_size": vocab_chunk_size}
    ours, entropy = chunked(leaves, tokens, **options)
    gradients = torch.autograd.grad((ours * upstream).sum(), leaves)

    hidden, weight, *bias = leaves
    logits = torch.nn.functional.linear(hidden, weight, *bias)
    full, full_entropy = from_logits(logits, tokens, temperature=temperature)
    expected = torch.autograd.grad((full * upstream * mask).sum(), leaves)
    torch.testing.assert_close(ours, full * mask)
    torch.testing.assert_close(entropy, full_entropy * mask)
    assert not entropy.requires_grad
    with torch.no_grad():
        alone, none = chunked(leaves, tokens, **options)
    torch.testing.assert_close(alone, full * mask)
    assert none is None
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_without_a_mask_all_but_the_first_column_is_computed():
    leaves, tokens, _, _ = case()
    ours, _ = chunked(leaves, tokens)
    assert ours[:, 0].tolist() == [0.0] * B
    assert bool((ours[:, 1:] < 0).all())


def test_gradients_agree_with_finite_differences():
    leaves, tokens, mask, _ = case()

    def logprobs(*inputs):
        return chunked(
            inputs, tokens, temperature=1.3, chunk_size=2, vocab_chunk_size=4, loss_mask=mask
        )[0]

    assert torch.autograd.gradcheck(logprobs, leaves)


def test_logits_exist_a_tile_at_a_time_and_nothing_is_larger_than_the_head():
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    hidden = torch.randn(2, 101, 2, requires_grad=True)
    weight = torch.randn(997, 2, requires_grad=True)
    tokens = torch.randint(0, 997, (2, 101))
    with Watch():
        token_logprobs(hidden, weight, tokens, chunk_size=64)[0].sum().backward()
        assert largest == 64 * 997
        largest = 0
        token_logprobs(hidden, weight, tokens, chunk_size=64, vocab_chunk_size=16)[
            0
        ].sum().backward()
        assert largest == weight.numel()


def test_large_logits_do_not_overflow():
    leaves, tokens, mask, _ = case(torch.float32)
    leaves[0] = (leaves[0].detach() * 1e4).requires_grad_()
    ours, entropy = chunked(leaves, tokens, vocab_chunk_size=3, loss_mask=mask)
    ours.sum().backward()
    assert all(bool(value.isfinite().all()) for value in (ours, entropy, leaves[0].grad))


def test_a_frozen_head_gets_no_gradient_and_changes_none():
    leaves, tokens, mask, _ = case(with_bias=False)
    hidden, weight = leaves
    (expected,) = torch.autograd.grad(chunked(leaves, tokens, loss_mask=mask)[0].sum(), [hidden])
    frozen = weight.detach()
    chunked([hidden, frozen], tokens, loss_mask=mask)[0].sum().backward()
    assert torch.equal(hidden.grad, expected)
    assert frozen.grad is None


def test_a_compiled_function_gives_the_same():
    leaves, tokens, mask, _ = case()
    expected, _ = chunked(leaves, tokens, chunk_size=4, loss_mask=mask)
    gradients = torch.autograd.grad(expected.sum(), leaves)
    compiled = torch.compile(chunked, backend="aot_eager")
    ours, _ = compiled(leaves, tokens, chunk_size=4, loss_mask=mask)
    torch.testing.assert_close(ours, expected)
    for one, other in zip(torch.autograd.grad(ours.sum(), leaves), gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_bfloat16_has_a_float32_softmax_and_bfloat16_gradients():
    leaves, tokens, mask, _ = case(torch.bfloat16)
    ours, entropy = chunked(leaves, tokens, chunk_size=2, loss_mask=mask)
    assert ours.dtype is entropy.dtype is torch.float32
    ours.sum().backward()
    assert all(leaf.grad.dtype is torch.bfloat16 for leaf in leaves)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    exact, _ = chunked(wide, tokens, loss_mask=mask)
    exact.sum().backward()
    torch.testing.assert_close(ours.double(), exact, atol=0.05, rtol=0.05)
    for leaf, reference in zip(leaves, wide, strict=True):
        torch.testing.assert_close(leaf.grad.double(), reference.grad, atol=0.05, rtol=0.05)


def test_nothing_to_train_still_reaches_the_parameters_with_zero_gradients():
    leaves, tokens, mask, _ = case()
    chunked(leaves, tokens, loss_mask=torch.zeros_like(mask))[0].sum().backward()
    assert all(leaf.grad.abs().sum() == 0.0 for leaf in leaves)


def test_token_ids_and_nan_outside_the_mask_are_never_read():
    leaves, tokens, mask, _ = case()
    mask[:, 0] = False
    expected, _ = chunked(leaves, tokens, loss_mask=mask)
    hidden = leaves[0].detach().clone()
    hidden[:, :-1][~mask[:, 1:]] = math.nan
    dirty, _ = chunked([hidden, *leaves[1:]], torch.where(mask, tokens, -100), loss_mask=mask)
    assert torch.equal(dirty, expected)
