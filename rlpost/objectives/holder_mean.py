"""The Hölder (power) mean of a sequence's ratios, in log space, and each token's share in it."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_SMALL_P = 1e-6


def holder_log_mean(
    log_ratio: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], p: float
) -> Float[Tensor, "B"]:
    """Return log rho = log(mean_t exp(p d_t)) / p of each row's masked tokens d.

    As p -> 0 it is mean_t d_t; a row without tokens gives 0.
    """
    # In float64 with expm1 and log1p, because near p = 0 a small logarithm is divided by p.
    # Autograd through expm1 would lose the digits of small shares: the gradient is put in as such.
    d = torch.where(mask, log_ratio, 0.0).double()
    held = d.detach()
    shares = token_shares(held, mask, p)
    value = (shares * held).sum(-1) if abs(p) < _SMALL_P else _log_mean_exp(p * held, mask) / p
    return (value + (shares * (d - held)).sum(-1)).to(log_ratio.dtype)


def _log_mean_exp(exponents: Tensor, mask: Tensor) -> Tensor:
    """Return log(mean_t exp(e_t)) of each row's masked entries, 0 for a row without any."""
    # The largest exponent is taken out, so that no exp overflows; -inf is a row without tokens.
    top = torch.where(mask, exponents, -torch.inf).amax(-1).nan_to_num(neginf=0.0)
    shifted = torch.where(mask, exponents - top[:, None], 0.0)
    return top + (shifted.expm1().sum(-1) / mask.sum(-1).clamp(min=1)).log1p()


def token_shares(
    log_ratio: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], p: float
) -> Float[Tensor, "B T"]:
    """Return w_t = r_t^p / sum_s r_s^p, which sums to 1 over a row's masked tokens."""
    p = 0.0 if abs(p) < _SMALL_P else p
    logits = torch.where(mask, p * log_ratio, -torch.inf)
    logits = torch.where(mask.any(-1, keepdim=True), logits, 0.0)
    return torch.where(mask, logits.softmax(-1), 0.0)
