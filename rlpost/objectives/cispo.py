"""CISPO: every token keeps its gradient, with an importance weight that is clipped."""

from torch import Tensor

from rlpost.objective_configs import CispoConfig
from rlpost.objectives.interface import TokenObjective, bounded_exp


class Cispo(TokenObjective[CispoConfig]):
    """-sg[min(r, 1 + eps_high)] A logprob. Source: MiniMax-M1, arXiv 2506.13585."""

    def token_terms(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
        """Return each token's weighted logprob."""
        ratio = bounded_exp((logprobs - old_logprobs).detach())
        return -ratio.clamp(max=1 + self.config.eps_high) * advantages * logprobs
