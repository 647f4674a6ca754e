"""Logprobs of given tokens from hidden states and LM head, without ever holding all logits."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, pad

_CHUNK_ELEMENTS = 2**22
"""Logits held at once: 16 MiB in float32."""


def token_logprobs(
    hidden: Float[Tensor, "B T H"],
    lm_head_weight: Float[Tensor, "V H"],
    token_ids: Int[Tensor, "B T"],
    *,
    bias: Float[Tensor, "V"] | None = None,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    loss_mask: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Return logprobs and (detached) entropy, aligned with `token_ids`.

    Column t is log softmax(hidden[:, t - 1] W^T / temperature) at token t. Column 0 and columns
    outside `loss_mask` are 0 and cost nothing. Logits exist for `chunk_size` tokens at a time
    (null: as many as fit 16 MiB), forward and again backward; their softmax is in float32 or
    better.
    """
    mask = torch.ones_like(token_ids, dtype=torch.bool) if loss_mask is None else loss_mask.clone()
    mask[:, 0] = False
    states = hidden[:, :-1][mask[:, 1:]]
    size = chunk_size or max(1, _CHUNK_ELEMENTS // lm_head_weight.shape[0])
    values, entropies = _ChunkedLogprobs.apply(
        states, lm_head_weight, bias, token_ids[mask], temperature, size
    )
    logprobs = values.new_zeros(token_ids.shape).masked_scatter(mask, values)
    entropy = values.new_zeros(token_ids.shape).masked_scatter(mask, entropies)
    return logprobs, entropy


def from_logits(
    logits: Float[Tensor, "B T V"], token_ids: Int[Tensor, "B T"], temperature: float = 1.0
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Return what `token_logprobs` returns, from logits that exist in full."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    scores = (logits[:, :-1].to(dtype) / temperature).log_softmax(-1)
    logprobs = scores.gather(-1, token_ids[:, 1:, None])[..., 0]
    entropy = -(scores.exp() * scores).sum(-1).detach()
    return pad(logprobs, (1, 0)), pad(entropy, (1, 0))


class _ChunkedLogprobs(torch.autograd.Function):
    """Selected logprobs `[N]` and entropies `[N]` of N positions, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(states.dtype, torch.float32)
        logprobs = torch.empty(len(states), dtype=dtype, device=states.device)
        entropy = torch.empty_like(logprobs)
        for part in _chunks(len(states), chunk_size):
            scores = _log_softmax(states[part], weight, bias, temperature, dtype)
            logprobs[part] = scores.gather(-1, targets[part, None])[:, 0]
            entropy[part] = -(scores.exp() * scores).sum(-1)
        ctx.save_for_backward(states, weight, bias, targets)
        ctx.temperature, ctx.chunk_size = temperature, chunk_size
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]  # static
        states, weight, bias, targets = ctx.saved_tensors
        upstream = grad_outputs[0] / ctx.temperature
        dtype = upstream.dtype
        needs_states, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        # What adds up over chunks does so in float32; a frozen head (LoRA) needs nothing.
        into_states = torch.empty_like(states) if needs_states else None
        into_weight = torch.zeros_like(weight, dtype=dtype) if needs_weight else None
        into_bias = torch.zeros_like(bias, dtype=dtype) if needs_bias else None
        for part in _chunks(len(states), ctx.chunk_size):
            scores = _log_softmax(states[part], weight, bias, ctx.temperature, dtype)
            # d logprob / d logits = onehot - softmax.
            slope = scores.exp_().neg_()
            slope.scatter_add_(-1, targets[part, None], torch.ones_like(slope[:, :1]))
            slope *= upstream[part, None]
            narrow = slope.to(states.dtype)
            if into_states is not None:
                into_states[part] = narrow @ weight
            if into_weight is not None:
                into_weight += narrow.T @ states[part]
            if into_bias is not None:
                into_bias += slope.sum(0)
        if into_weight is not None:
            into_weight = into_weight.to(weight.dtype)
        if into_bias is not None:
            into_bias = into_bias.to(bias.dtype)
        return into_states, into_weight, into_bias, None, None, None


def _chunks(num_rows: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, num_rows, size)]


def _log_softmax(
    states: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, dtype: torch.dtype
) -> Tensor:
    logits = linear(states, weight, bias).to(dtype)
    return (logits / temperature).log_softmax(-1)
