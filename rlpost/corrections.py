"""Off-policy corrections: tokens weighed by how far the learner is from what vLLM sampled from."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlpost.errors import ConfigError
from rlpost.objectives.interface import bounded_exp


def correction_weights(
    name: str,
    old_logprobs: Float[Tensor, "B T"],
    behavior_logprobs: Float[Tensor, "B T"],
    loss_mask: Bool[Tensor, "B T"],
    *,
    cap: float = 2.0,
    low: float = 0.5,
    high: float = 2.0,
) -> Float[Tensor, "B T"]:
    """Return what to multiply each token's loss with, without gradient; 0 under a False mask.

    With w = exp(old_logprobs - behavior_logprobs):

    * `none`: 1.
    * `tis`: min(w, cap) of the token. Truncated importance sampling.
    * `tis_seq`: min(prod_t w, cap) of the sequence.
    * `icepop`: w inside [low, high], else 0. arXiv 2510.18855.
    * `seq_mask`: 1 where the sequence's geometric mean of w is inside [low, high], else 0.

    Raises:
        ConfigError: an unknown correction.
    """
    if name not in _CORRECTIONS:
        known = ", ".join(_CORRECTIONS)
        raise ConfigError(f"correction.kind={name}: no such correction; available: {known}")
    dtype = torch.promote_types(old_logprobs.dtype, torch.float32)
    old, behavior = (
        torch.where(loss_mask, values.detach(), 0.0).to(dtype)
        for values in (old_logprobs, behavior_logprobs)
    )
    weights = _CORRECTIONS[name](old - behavior, loss_mask, cap, low, high)
    return torch.where(loss_mask, weights, 0.0)


def _none(gap: Tensor, *_: object) -> Tensor:
    return torch.ones_like(gap)


def _tis(gap: Tensor, _: Tensor, cap: float, *__: object) -> Tensor:
    return bounded_exp(gap).clamp(max=cap)


def _tis_seq(gap: Tensor, _: Tensor, cap: float, *__: object) -> Tensor:
    return bounded_exp(gap.sum(-1, keepdim=True)).clamp(max=cap).expand_as(gap)


def _icepop(gap: Tensor, _: Tensor, __: float, low: float, high: float) -> Tensor:
    return torch.where(_inside(gap, low, high), bounded_exp(gap), 0.0)


def _seq_mask(gap: Tensor, mask: Tensor, _: float, low: float, high: float) -> Tensor:
    mean = gap.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return _inside(mean, low, high).to(gap.dtype).expand_as(gap)


def _inside(gap: Tensor, low: float, high: float) -> Tensor:
    return (gap >= math.log(low)) & (gap <= math.log(high))


_CORRECTIONS: dict[str, Callable[..., Tensor]] = {
    "none": _none,
    "tis": _tis,
    "tis_seq": _tis_seq,
    "icepop": _icepop,
    "seq_mask": _seq_mask,
}
