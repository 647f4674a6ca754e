"""REINFORCE; with advantage 1 it is the negative log-likelihood of a supervised warm start."""

from dataclasses import dataclass

from torch import Tensor

from rlpost.objectives.interface import TokenObjective
from rlpost.schema import ObjectiveConfig


@dataclass(kw_only=True)
class ReinforceConfig(ObjectiveConfig):
    """It has no hyperparameters."""

    name: str = "reinforce"


class Reinforce(TokenObjective[ReinforceConfig]):
    """-A logprob, whatever the ratio. Source: Williams 1992."""

    def token_terms(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
        """Return each token's term."""
        del old_logprobs
        return -advantages * logprobs
