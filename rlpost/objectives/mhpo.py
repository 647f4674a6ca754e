"""MHPO: a log-fidelity modulator and a decoupled hazard penalty."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rlpost.errors import ConfigError
from rlpost.objectives.interface import TokenObjective
from rlpost.schema import ObjectiveConfig


@dataclass(kw_only=True)
class MhpoConfig(ObjectiveConfig):
    """`c` bounds the log-ratio; k and lambda shape the hazard of rising and falling ratios.

    `lfm` and `dhp` switch the two parts off for ablations; `normalize_at_one` divides by M(1), so
    that an on-policy step is as large as that of `clip`.
    """

    name: str = "mhpo"
    c: float = 1.5
    k_pos: float = 1.5
    lambda_pos: float = 1.0
    k_neg: float = 2.0
    lambda_neg: float = 0.8
    lfm: bool = True
    dhp: bool = True
    normalize_at_one: bool = False

    def __post_init__(self) -> None:
        for field in ("c", "k_pos", "lambda_pos", "k_neg", "lambda_neg"):
            if not getattr(self, field) > 0:
                raise ConfigError(
                    f"objective.{field} must be positive, got {getattr(self, field)}: "
                    f"the paper's value is {getattr(type(self), field)}"
                )


class Mhpo(TokenObjective[MhpoConfig]):
    """-exp(psi - zeta) A, with psi = c tanh(log r / c) and the hazard zeta of sg[psi].

    zeta = (softplus(psi) / lambda_pos)^k_pos + (softplus(-psi) / lambda_neg)^k_neg carries no
    gradient: it scales the step and never bends its direction. Source: arXiv 2603.16929.
    """

    default_reduction = "sequence_mean"

    def token_terms(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return each token's modulated loss."""
        psi = self._psi(log_ratio)
        return -(psi - self._zeta(psi.detach())).exp() * self._scale() * advantages

    def gradient_multiplier(self, log_ratio: Tensor, advantage_sign: Tensor) -> Tensor:
        """Return M(r) = exp(psi - zeta) sech^2(log r / c); the sign of A does not matter."""
        del advantage_sign
        psi = self._psi(log_ratio)
        slope = 1 - (log_ratio / self.config.c).tanh() ** 2 if self.config.lfm else 1.0
        return (psi - self._zeta(psi)).exp() * slope * self._scale()

    def _psi(self, log_ratio: Tensor) -> Tensor:
        c = self.config.c
        # Without the modulator nothing bounds exp; 40 keeps float32 finite.
        return c * (log_ratio / c).tanh() if self.config.lfm else log_ratio.clamp(max=40.0)

    def _zeta(self, psi: Tensor) -> Tensor:
        config = self.config
        if not config.dhp:
            return torch.zeros_like(psi)
        rising = (softplus(psi) / config.lambda_pos) ** config.k_pos
        falling = (softplus(-psi) / config.lambda_neg) ** config.k_neg
        return rising + falling

    def _scale(self) -> float:
        config = self.config
        if not (config.normalize_at_one and config.dhp):
            return 1.0
        half = math.log(2.0)
        hazard = (half / config.lambda_pos) ** config.k_pos
        return math.exp(hazard + (half / config.lambda_neg) ** config.k_neg)
