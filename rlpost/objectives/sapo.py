"""SAPO: a sigmoid gate in place of the clip, of its own width for each sign of the advantage."""

import torch
from torch import Tensor

from rlpost.objective_configs import SapoConfig
from rlpost.objectives.interface import TokenObjective, bounded_exp


class Sapo(TokenObjective[SapoConfig]):
    """-(4 / tau) sigmoid(tau (r - 1)) A, tau = tau_pos for A > 0 and tau_neg otherwise; M(1) = 1.

    Source: Gao et al. 2025, arXiv 2511.20347.
    """

    default_reduction = "sequence_mean"

    def token_terms(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
        """Return each token's gated loss."""
        ratio = bounded_exp(logprobs - old_logprobs)
        rising, falling = (
            ratio.new_tensor(tau) for tau in (self.config.tau_pos, self.config.tau_neg)
        )
        tau = torch.where(advantages > 0, rising, falling)
        return -(4 / tau) * (tau * (ratio - 1)).sigmoid() * advantages
