"""REINFORCE; with advantage 1 it is the negative log-likelihood of a supervised warm start."""

from torch import Tensor

from rlpost.objective_configs import ReinforceConfig
from rlpost.objectives.interface import TokenObjective


class Reinforce(TokenObjective[ReinforceConfig]):
    """-A logprob, whatever the ratio. Source: Williams 1992."""

    def token_terms(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
        """Return each token's term."""
        del old_logprobs
        return -advantages * logprobs
