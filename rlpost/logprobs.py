"""Logprobs of given tokens from hidden states and LM head, without ever holding all logits."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

_CHUNK_TOKENS = 2048
_TILE_ELEMENTS = {"cpu": 2**22, "cuda": 2**26}
"""Logits held at once, in float32: 16 MiB stay in a CPU's cache, a GPU wants larger products."""


def token_logprobs(
    hidden: Float[Tensor, "B T H"],
    lm_head_weight: Float[Tensor, "V H"],
    token_ids: Int[Tensor, "B T"],
    *,
    bias: Float[Tensor, "V"] | None = None,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    vocab_chunk_size: int | None = None,
    loss_mask: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
    """Return logprobs and (detached) entropy, aligned with `token_ids`.

    Column t is log softmax(hidden[:, t - 1] W^T / temperature) at token t. Column 0 and columns
    outside `loss_mask` are 0 and cost nothing. Logits exist for a tile of `chunk_size` tokens by
    `vocab_chunk_size` vocabulary entries at a time (null: 2048, and as many as fit 16 MiB on CPU,
    256 MiB on GPU), forward and again backward, in float32 or better. Entropy comes with the
    gradient's own work, and is None under `torch.no_grad`.
    """
    mask = torch.ones_like(token_ids, dtype=torch.bool) if loss_mask is None else loss_mask.clone()
    mask[:, 0] = False
    states = hidden[:, :-1][mask[:, 1:]]
    rows = chunk_size or _CHUNK_TOKENS
    elements = _TILE_ELEMENTS.get(states.device.type, _TILE_ELEMENTS["cuda"])
    columns = vocab_chunk_size or max(1, elements // max(1, min(rows, len(states))))
    trained = [t for t in (states, lm_head_weight, bias) if t is not None and t.requires_grad]
    with_gradient = torch.is_grad_enabled() and bool(trained)
    values, entropies = _TiledLogprobs.apply(
        states,
        lm_head_weight,
        bias,
        token_ids[mask],
        _Tiling(rows, columns, temperature),
        with_gradient,
    )
    logprobs = values.new_zeros(token_ids.shape).masked_scatter(mask, values)
    if entropies is None:
        return logprobs, None
    return logprobs, values.new_zeros(token_ids.shape).masked_scatter(mask, entropies)


def from_logits(
    logits: Float[Tensor, "B T V"], token_ids: Int[Tensor, "B T"], temperature: float = 1.0
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Return what `token_logprobs` returns, from logits that exist in full."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    scores = (logits[:, :-1].to(dtype) / temperature).log_softmax(-1)
    logprobs = scores.gather(-1, token_ids[:, 1:, None])[..., 0]
    entropy = -(scores.exp() * scores).sum(-1).detach()
    return pad(logprobs, (1, 0)), pad(entropy, (1, 0))


@dataclass(frozen=True, slots=True)
class _Tiling:
    rows: int
    columns: int
    temperature: float

    def of_tokens(self, states: Tensor) -> list[slice]:
        return _slices(len(states), self.rows)

    def of_vocabulary(self, weight: Tensor) -> list[slice]:
        return _slices(len(weight), self.columns)

    def buffer(self, states: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Return room for one tile of logits."""
        shape = min(self.rows, len(states)), min(self.columns, len(weight))
        return torch.empty(shape, dtype=dtype, device=states.device)


class _TiledLogprobs(torch.autograd.Function):
    """Selected logprobs `[N]` and entropies `[N]` of N positions, tile by tile.

    Forward, a row's softmax p is folded over the vocabulary with a running maximum, as in flash
    attention, and with it the mean row of the head, p W: that is what the gradient of the states
    (W[target] - p W) and the entropy (log Z - states . p W) need. Backward, the tiles are computed
    once more for the gradient of the head.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        tiling: _Tiling,
        with_gradient: bool,  # noqa: FBT001 - autograd functions take their arguments by position
    ) -> tuple[Tensor, Tensor | None]:
        dtype = torch.promote_types(states.dtype, torch.float32)
        log_z = torch.empty(len(states), dtype=dtype, device=states.device)
        chosen, entropy = torch.empty_like(log_z), torch.empty_like(log_z)
        slopes = torch.empty_like(states, dtype=dtype) if with_gradient else None
        buffer = tiling.buffer(states, weight, dtype)
        for rows in tiling.of_tokens(states):
            part, wanted = states[rows], weight[targets[rows]].to(dtype)
            log_z[rows], mean_row, mean_bias = _fold(
                part, weight, bias, tiling, buffer, with_means=with_gradient
            )
            chosen[rows] = (part.to(dtype) * wanted).sum(-1)
            if slopes is not None:
                slopes[rows] = (wanted - mean_row) / tiling.temperature
                mean_logit = (part.to(dtype) * mean_row).sum(-1) + mean_bias
                entropy[rows] = log_z[rows] - mean_logit / tiling.temperature
        if bias is not None:
            chosen += bias[targets]
        if not with_gradient:
            return chosen / tiling.temperature - log_z, None
        ctx.save_for_backward(states, weight, bias, targets, log_z, slopes)
        ctx.tiling = tiling
        ctx.mark_non_differentiable(entropy)
        return chosen / tiling.temperature - log_z, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]  # static
        states, weight, bias, targets, log_z, slopes = ctx.saved_tensors
        needs_states, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        upstream = grad_outputs[0]
        into_states = (upstream[:, None] * slopes).to(states.dtype) if needs_states else None
        if not needs_weight and not needs_bias:  # a frozen head (LoRA)
            return into_states, None, None, None, None, None
        tiling, dtype = ctx.tiling, log_z.dtype
        upstream = upstream / tiling.temperature
        # d logprob / d logits = onehot - softmax; what adds up does so in float32 or better.
        pulled = upstream[:, None] * states
        into_weight = torch.zeros_like(weight, dtype=dtype)
        into_weight.index_add_(0, targets, pulled)
        pulled = pulled.neg_().to(states.dtype)
        into_bias = torch.zeros(len(weight), dtype=dtype, device=weight.device)
        into_bias.index_add_(0, targets, upstream)
        buffer = tiling.buffer(states, weight, dtype)
        for columns in tiling.of_vocabulary(weight):
            for rows in tiling.of_tokens(states):
                tile = _logits(states[rows], weight, bias, columns, tiling, buffer)
                softmax = tile.sub_(log_z[rows, None]).exp_()
                _add_product(into_weight[columns], softmax.T, pulled[rows])
                if needs_bias:
                    into_bias[columns] -= upstream[rows] @ softmax
        into_weight = into_weight.to(weight.dtype) if needs_weight else None
        into_bias = into_bias.to(bias.dtype) if needs_bias else None
        return into_states, into_weight, into_bias, None, None, None


def _fold(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tiling: _Tiling,
    buffer: Tensor,
    *,
    with_means: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log Z `[n]`; where wanted, the head's mean row `[n, H]` and bias `[n]` under p."""
    top = torch.full((len(states), 1), -torch.inf, dtype=buffer.dtype, device=states.device)
    total, mean_bias = torch.zeros_like(top), torch.zeros_like(top[:, 0])
    mean_row = torch.zeros_like(states, dtype=buffer.dtype)
    for columns in tiling.of_vocabulary(weight):
        tile = _logits(states, weight, bias, columns, tiling, buffer)
        risen = torch.maximum(top, tile.amax(-1, keepdim=True))
        fade = (top - risen).exp_()
        top = risen
        scaled = tile.sub_(top).exp_()
        total = total * fade + scaled.sum(-1, keepdim=True)
        if with_means:
            _add_product(mean_row.mul_(fade), scaled, weight[columns])
            if bias is not None:
                mean_bias = mean_bias * fade[:, 0] + scaled @ bias[columns].to(scaled.dtype)
    return (top + total.log())[:, 0], mean_row.div_(total), mean_bias / total[:, 0]


def _logits(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    columns: slice,
    tiling: _Tiling,
    buffer: Tensor,
) -> Tensor:
    """Return the logits of some columns, over temperature, in the buffer."""
    part = weight[columns]
    tile = buffer[: len(states), : len(part)]
    if part.dtype == tile.dtype:
        torch.mm(states, part.T, out=tile)
    else:
        _add_product(tile.zero_(), states, part.T)
    if bias is not None:
        tile += bias[columns]
    return tile.div_(tiling.temperature) if tiling.temperature != 1.0 else tile


def _add_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """Add a matrix product to a total of float32 or better, which no term is rounded below."""
    if total.is_cuda and other.dtype != total.dtype:
        # Tensor cores multiply the narrow numbers and add in float32.
        torch.addmm(total, one.to(other.dtype), other, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(one.to(total.dtype), other.to(total.dtype))


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]
