"""Estimators of KL(p || q) from tokens sampled from p."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlpost.errors import ConfigError

_MAX_EXPONENT = 40.0


def kl(
    estimator: str,
    logprobs: Float[Tensor, "B T"],
    ref_logprobs: Float[Tensor, "B T"],
    loss_mask: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """Return each token's estimate in float32 or better, 0 under a False mask.

    With d = logprobs - ref_logprobs: `k1` = d, `k2` = d^2 / 2, `k3` = exp(-d) - 1 + d, constant
    below d = -40. (With only its exponent clamped there, k3 would push such a token further away.)
    Source: Schulman 2020, "Approximating KL divergence".

    Raises:
        ConfigError: an unknown estimator.
    """
    dtype = torch.promote_types(logprobs.dtype, torch.float32)
    ours = torch.where(loss_mask, logprobs, 0.0).to(dtype)
    d = ours - torch.where(loss_mask, ref_logprobs, 0.0).to(dtype).detach()
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d.square() / 2
    if estimator == "k3":
        d = d.clamp(min=-_MAX_EXPONENT)
        return torch.expm1(-d) + d
    raise ConfigError(f"kl.estimator={estimator}: no such estimator; available: k1, k2, k3")
