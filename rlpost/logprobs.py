"""Logprobs of given tokens from hidden states and LM head, without ever holding all logits."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_CHUNK_ELEMENTS = 2**22
"""Logits held at once: 16 MiB in float32."""


def token_logprobs(
    hidden: Float[Tensor, "B T H"],
    weight: Float[Tensor, "V H"],
    token_ids: Int[Tensor, "B T"],
    *,
    bias: Float[Tensor, "V"] | None = None,
    temperature: float = 1.0,
    loss_mask: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Return logprobs and (detached) entropy, aligned with `token_ids`.

    Column t is log softmax(hidden[:, t - 1] W^T / temperature) at token t. Column 0 and columns
    outside `loss_mask` are 0 and cost nothing. Logits exist for a chunk of tokens at a time,
    forward and again backward.
    """
    mask = torch.ones_like(token_ids, dtype=torch.bool) if loss_mask is None else loss_mask.clone()
    mask[:, 0] = False
    states = hidden[:, :-1][mask[:, 1:]]
    values, entropies = _ChunkedLogprobs.apply(states, weight, bias, token_ids[mask], temperature)
    logprobs = values.new_zeros(token_ids.shape).masked_scatter(mask, values)
    entropy = values.new_zeros(token_ids.shape).masked_scatter(mask, entropies)
    return logprobs, entropy


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
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(states.dtype, torch.float32)
        logprobs = torch.empty(len(states), dtype=dtype, device=states.device)
        entropy = torch.empty_like(logprobs)
        for part in _chunks(len(states), weight.shape[0]):
            scores = _log_softmax(states[part], weight, bias, temperature, dtype)
            logprobs[part] = scores.gather(-1, targets[part, None])[:, 0]
            entropy[part] = -(scores.exp() * scores).sum(-1)
        ctx.save_for_backward(states, weight, bias, targets)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, targets = ctx.saved_tensors
        upstream = gradients[0]
        dtype = upstream.dtype
        states_gradient = torch.empty_like(states)
        weight_gradient = torch.zeros(weight.shape, dtype=dtype, device=weight.device)
        bias_gradient = None if bias is None else torch.zeros_like(bias, dtype=dtype)
        for part in _chunks(len(states), weight.shape[0]):
            scores = _log_softmax(states[part], weight, bias, ctx.temperature, dtype)
            # d logprob / d logits = onehot - softmax, over the temperature.
            slope = scores.exp_().neg_()
            slope.scatter_add_(-1, targets[part, None], torch.ones_like(slope[:, :1]))
            slope *= (upstream[part] / ctx.temperature)[:, None]
            narrow = slope.to(states.dtype)
            states_gradient[part] = narrow @ weight
            weight_gradient += narrow.T @ states[part]
            if bias_gradient is not None:
                bias_gradient += slope.sum(0)
        bias_gradient = None if bias_gradient is None else bias_gradient.to(bias.dtype)
        return states_gradient, weight_gradient.to(weight.dtype), bias_gradient, None, None


def _chunks(num_rows: int, vocabulary: int) -> list[slice]:
    size = max(1, _CHUNK_ELEMENTS // vocabulary)
    return [slice(start, start + size) for start in range(0, num_rows, size)]


def _log_softmax(
    states: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, dtype: torch.dtype
) -> Tensor:
    logits = torch.nn.functional.linear(states, weight, bias).to(dtype) / temperature
    return logits.log_softmax(-1)
