"""No control: the plain importance-weighted policy gradient."""

from torch import Tensor

from rlpost.objective_configs import NoneConfig
from rlpost.objectives.interface import TokenObjective, bounded_exp


class Uncontrolled(TokenObjective[NoneConfig]):
    """-r A, the surrogate that the others bound. Source: Schulman et al. 2015, arXiv 1502.05477."""

    def token_terms(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
        """Return each token's term."""
        return -bounded_exp(logprobs - old_logprobs) * advantages
