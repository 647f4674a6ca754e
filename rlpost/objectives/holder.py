"""HölderPO: the Hölder mean of a sequence's ratios, with an exponent that moves over training."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlpost.objective_configs import HolderConfig, Schedule
from rlpost.objectives.clip import clipped_gain
from rlpost.objectives.interface import Objective, ObjectiveInputs, bounded_exp
from rlpost.objectives.schedules import scheduled

_SMALL_P = 1e-6


class Holder(Objective[HolderConfig]):
    """-min(rho A, clip(rho, 1 - eps, 1 + eps) A), rho = ((1/T) sum_t r_t^p)^(1/p) of a sequence.

    d log rho / d log r_t = r_t^p / sum_s r_s^p: where the clip does not bind, a token's share in
    its sequence's gradient. On policy it is 1/T for every p. Source: arXiv 2605.12058.
    """

    default_reduction = "sequence_mean"

    def at_step(self, step: int, progress: float | None = None) -> Mapping[str, float]:
        """Return p at a step."""
        config = self.config
        if config.p_schedule is Schedule.constant:
            return {"p": config.p}
        x = step / config.schedule_steps if progress is None else progress
        return {"p": scheduled(config.p_schedule, x, config.p_min, config.p_max)}

    def terms(self, inputs: ObjectiveInputs, values: Mapping[str, float]) -> tuple[Tensor, Tensor]:
        """Return the sequence's term on each of its tokens, whose weights sum to the sequence's."""
        p, eps, mask, advantages = values["p"], self.config.eps, inputs.loss_mask, inputs.advantages
        log_ratio = inputs.logprobs - inputs.old_logprobs
        rho = bounded_exp(holder_log_mean(log_ratio, mask, p))[:, None]
        terms = -clipped_gain(rho, advantages, 1 - eps, 1 + eps)

        num_tokens = mask.sum(-1, keepdim=True)
        multiplier = rho * token_shares(log_ratio.detach(), mask, p) * num_tokens
        binds = torch.where(advantages < 0, rho < 1 - eps, rho > 1 + eps)
        return terms, torch.where(binds, 0.0, multiplier)


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
