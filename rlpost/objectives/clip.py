"""PPO's and GRPO's clipped ratio, with DAPO's asymmetric bounds and the dual clip."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlpost.errors import ConfigError
from rlpost.objectives.interface import TokenObjective
from rlpost.schema import ObjectiveConfig


@dataclass(kw_only=True)
class ClipConfig(ObjectiveConfig):
    """Bounds of the ratio: 1 - eps_low to 1 + eps_high; `dual_clip` c > 1 bounds A < 0."""

    name: str = "clip"
    eps_low: float = 0.2
    eps_high: float = 0.2
    dual_clip: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.eps_low < 1:
            raise ConfigError(f"objective.eps_low must lie in (0, 1), got {self.eps_low}: try 0.2")
        if self.eps_high <= 0:
            raise ConfigError(f"objective.eps_high must be positive, got {self.eps_high}: try 0.2")
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise ConfigError(
                f"objective.dual_clip must be above 1, got {self.dual_clip}: try 3, or null"
            )


class Clip(TokenObjective[ClipConfig]):
    """-min(r A, clip(r, 1 - eps_low, 1 + eps_high) A), and for A < 0 at most -c A.

    Source: Schulman et al. 2017, arXiv 1707.06347, equation 7; the bounds from DAPO, arXiv
    2503.14476; the dual clip from Ye et al. 2020, arXiv 1912.09729.
    """

    def token_terms(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return each token's clipped loss."""
        active = self._active(log_ratio.detach(), advantages.sign())
        # Where the clip binds the term is constant, so an overflow of exp must not reach it.
        ratio = torch.where(active, log_ratio, 0.0).clamp(max=40.0).exp()
        bound = torch.where(
            advantages > 0,
            1 + self.config.eps_high,
            self._lower_bound(log_ratio.detach()),
        )
        return -torch.where(active, ratio, bound) * advantages

    def gradient_multiplier(self, log_ratio: Tensor, advantage_sign: Tensor) -> Tensor:
        """Return r where no bound binds, else 0."""
        active = self._active(log_ratio, advantage_sign)
        ratio = torch.where(active, log_ratio, 0.0).clamp(max=40.0).exp()
        return torch.where(active, ratio, 0.0)

    def _active(self, log_ratio: Tensor, sign: Tensor) -> Tensor:
        high = torch.tensor(1 + self.config.eps_high, dtype=log_ratio.dtype).log()
        low = torch.tensor(1 - self.config.eps_low, dtype=log_ratio.dtype).log()
        falling = log_ratio >= low
        if self.config.dual_clip is not None:
            cap = torch.tensor(self.config.dual_clip, dtype=log_ratio.dtype).log()
            falling = falling & (log_ratio <= cap)
        rising = log_ratio <= high
        return torch.where(sign > 0, rising, torch.where(sign < 0, falling, log_ratio.abs() < 1))

    def _lower_bound(self, log_ratio: Tensor) -> Tensor:
        """Return the constant ratio that stands in for A < 0: below the clip, or above the cap."""
        low = torch.full_like(log_ratio, 1 - self.config.eps_low)
        cap = self.config.dual_clip or 1.0
        return torch.where(log_ratio > 0, torch.full_like(log_ratio, cap), low)
