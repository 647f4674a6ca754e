"""MHPO: a log-fidelity modulator and a decoupled hazard penalty."""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rlpost.objective_configs import MhpoConfig
from rlpost.objectives.interface import MAX_EXPONENT, TokenObjective, bounded_exp


class Mhpo(TokenObjective[MhpoConfig]):
    """-exp(psi - zeta) A, with psi = c tanh(log r / c) and the hazard zeta of sg[psi].

    zeta = (softplus(psi) / lambda_pos)^k_pos + (softplus(-psi) / lambda_neg)^k_neg carries no
    gradient: it scales the step and never bends its direction. The gradient multiplier is
    M(r) = exp(psi - zeta) sech^2(log r / c) <= e^c, and M(1) = 0.2651 at the defaults: on policy,
    a step is about a quarter of `clip`'s. Source: arXiv 2603.16929.
    """

    default_reduction = "sequence_mean"

    def token_terms(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
        """Return each token's modulated loss."""
        c, log_ratio = self.config.c, logprobs - old_logprobs
        psi = c * (log_ratio / c).tanh() if self.config.lfm else log_ratio
        loss = -bounded_exp(psi - self._hazard(psi.detach())) * advantages
        return loss / self._multiplier_at_one() if self.config.normalize_at_one else loss

    def _hazard(self, psi: Tensor) -> Tensor:
        config = self.config
        if not config.dhp:
            return torch.zeros_like(psi)
        # Above torch's own threshold of 20, softplus(x) = x would be 2e-9 off.
        rising = (softplus(psi, threshold=MAX_EXPONENT) / config.lambda_pos) ** config.k_pos
        falling = (softplus(-psi, threshold=MAX_EXPONENT) / config.lambda_neg) ** config.k_neg
        return rising + falling

    def _multiplier_at_one(self) -> float:
        return math.exp(-float(self._hazard(torch.zeros((), dtype=torch.float64))))
