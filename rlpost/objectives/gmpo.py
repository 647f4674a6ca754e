"""GMPO: the geometric mean of ratios that were clipped token by token."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from rlpost.objective_configs import GmpoConfig
from rlpost.objectives.holder_mean import holder_log_mean
from rlpost.objectives.interface import Objective, ObjectiveInputs, bounded_exp


class Gmpo(Objective[GmpoConfig]):
    """-A exp(mean_t e_t), e_t = min(d_t, log_clip) for A > 0 and max(d_t, -log_clip) for A < 0.

    Source: Zhao et al. 2025, arXiv 2507.20673.
    """

    default_reduction = "sequence_mean"

    def terms(self, inputs: ObjectiveInputs, values: Mapping[str, float]) -> Float[Tensor, "B T"]:
        """Return the loss of the sequence of clipped tokens."""
        del values
        bound, advantages = self.config.log_clip, inputs.advantages
        log_ratio = inputs.logprobs - inputs.old_logprobs
        bounded = torch.where(
            advantages < 0, log_ratio.clamp(min=-bound), log_ratio.clamp(max=bound)
        )
        ratio = bounded_exp(holder_log_mean(bounded, inputs.loss_mask, 0.0))[:, None]
        return -ratio * advantages
