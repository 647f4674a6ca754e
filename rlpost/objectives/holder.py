"""HölderPO: the Hölder mean of a sequence's ratios, with an exponent that moves over training."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rlpost.errors import ConfigError
from rlpost.metrics import Metrics
from rlpost.objectives.interface import Objective, ObjectiveInputs
from rlpost.objectives.schedules import Schedule, scheduled
from rlpost.schema import ObjectiveConfig

_SMALL_P = 1e-6


@dataclass(kw_only=True)
class HolderConfig(ObjectiveConfig):
    """`p` is used by `p_schedule=constant`; the others move from one end of the range to the other.

    `eps` bounds the sequence's ratio.
    """

    name: str = "holder"
    p: float = 1.0
    p_schedule: Schedule = Schedule.linear_dec
    p_max: float = 2.0
    p_min: float = -2.0
    schedule_steps: int = 500
    eps: float = 0.2

    def __post_init__(self) -> None:
        if self.p_min > self.p_max:
            raise ConfigError(
                f"objective.p_min={self.p_min} must not exceed objective.p_max={self.p_max}: "
                "swap them, and choose the direction with objective.p_schedule"
            )
        if self.schedule_steps < 1:
            raise ConfigError(
                f"objective.schedule_steps must be at least 1, got {self.schedule_steps}"
            )
        if not 0 < self.eps < 1:
            raise ConfigError(f"objective.eps must lie in (0, 1), got {self.eps}: try 0.2")


class Holder(Objective[HolderConfig]):
    """-min(rho A, clip(rho, 1 - eps, 1 + eps) A), rho = ((1/T) sum_t r_t^p)^(1/p).

    In log space: log rho = (logsumexp_t(p d_t) - log T) / p, and mean_t d_t as p -> 0. A token's
    share in the gradient is r_t^p / sum_s r_s^p. Source: arXiv 2605.12058.
    """

    default_reduction = "sequence_mean"

    def exponent(self, step: int, progress: float | None = None) -> float:
        """Return p at a step."""
        config = self.config
        if config.p_schedule is Schedule.constant:
            return config.p
        x = step / config.schedule_steps if progress is None else progress
        return scheduled(config.p_schedule, x, config.p_min, config.p_max)

    def terms(
        self, inputs: ObjectiveInputs, step: int, progress: float | None
    ) -> tuple[Tensor, Tensor, Metrics]:
        """Return the sequence's term on each of its tokens, so that token weights apply."""
        p = self.exponent(step, progress)
        mask, log_ratio = inputs.loss_mask, inputs.log_ratio()
        advantages = inputs.spread_advantages()
        log_rho = holder_log_mean(log_ratio, mask, p)[:, None].expand_as(log_ratio)
        high, low = math.log1p(self.config.eps), math.log1p(-self.config.eps)
        active = torch.where(advantages > 0, log_rho <= high, log_rho >= low)
        # Where the clip binds the term is constant, so an overflow of exp must not reach it. Far
        # above the bound with A < 0 the loss is unbounded by definition; 40 keeps it finite.
        rho = torch.where(active, log_rho.clamp(max=40.0), 0.0).exp()
        bound = 1 + self.config.eps * advantages.sign()
        terms = -torch.where(active, rho, bound) * advantages
        shares = token_shares(log_ratio.detach(), mask, p)
        lengths = mask.sum(-1, keepdim=True)
        multiplier = torch.where(active, rho.detach() * shares * lengths, 0.0)
        metrics = Metrics()
        metrics.mean("objective/p", p, 1.0)
        count = float(mask.sum())
        metrics.mean("policy/clip_frac", float((mask & ~active).sum()), count)
        return terms, multiplier, metrics


def holder_log_mean(log_ratio: Tensor, mask: Tensor, p: float) -> Tensor:
    """Return log rho `[B]` of each row's masked tokens; 0 for a row without any."""
    lengths = mask.sum(-1).clamp(min=1).to(log_ratio.dtype)
    if abs(p) < _SMALL_P:
        return torch.where(mask, log_ratio, 0.0).sum(-1) / lengths
    some = mask.any(-1)
    # A row without tokens gets one harmless entry: logsumexp of nothing is -inf, its gradient NaN.
    filled = torch.where(some[:, None], torch.where(mask, p * log_ratio, -torch.inf), 0.0)
    log_rho = (filled.logsumexp(-1) - lengths.log()) / p
    return torch.where(some, log_rho, 0.0)


def token_shares(log_ratio: Tensor, mask: Tensor, p: float) -> Tensor:
    """Return w_t = r_t^p / sum_s r_s^p `[B, T]`, summing to 1 over a row's masked tokens."""
    logits = torch.where(mask, p * log_ratio, -torch.inf)
    logits = torch.where(mask.any(-1, keepdim=True), logits, 0.0)
    return torch.where(mask, logits.softmax(-1), 0.0)
