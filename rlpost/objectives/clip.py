"""PPO's and GRPO's clipped ratio, with DAPO's asymmetric bounds and the dual clip."""

import torch
from torch import Tensor

from rlpost.objective_configs import ClipConfig
from rlpost.objectives.interface import TokenObjective, bounded_exp


class Clip(TokenObjective[ClipConfig]):
    """-min(r A, clip(r, 1 - eps_low, 1 + eps_high) A), and for A < 0 at most -c A.

    Source: Schulman et al. 2017, arXiv 1707.06347, equation 7; the bounds from DAPO, arXiv
    2503.14476; the dual clip from Ye et al. 2020, arXiv 1912.09729.
    """

    def token_terms(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
        """Return each token's clipped loss."""
        config = self.config
        ratio = bounded_exp(logprobs - old_logprobs)
        gain = clipped_gain(ratio, advantages, 1 - config.eps_low, 1 + config.eps_high)
        if config.dual_clip is not None:
            floor = config.dual_clip * advantages
            gain = torch.where(advantages < 0, torch.maximum(gain, floor), gain)
        return -gain


def clipped_gain(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """Return min(r A, clip(r, low, high) A), of tokens or of sequences."""
    return torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
