"""GSPO: the geometric mean of a sequence's ratios, clipped as one."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from rlpost.objective_configs import GspoConfig
from rlpost.objectives.clip import clipped_gain
from rlpost.objectives.holder_mean import holder_log_mean
from rlpost.objectives.interface import Objective, ObjectiveInputs, bounded_exp


class Gspo(Objective[GspoConfig]):
    """-min(s A, clip(s, 1 - eps_low, 1 + eps_high) A), s = exp(mean_t log r_t) of a sequence.

    Source: Zheng et al. 2025, arXiv 2507.18071.
    """

    default_reduction = "sequence_mean"

    def terms(self, inputs: ObjectiveInputs, values: Mapping[str, float]) -> Float[Tensor, "B T"]:
        """Return the clipped sequence's loss."""
        del values
        log_ratio = inputs.logprobs - inputs.old_logprobs
        ratio = bounded_exp(holder_log_mean(log_ratio, inputs.loss_mask, 0.0))[:, None]
        low, high = 1 - self.config.eps_low, 1 + self.config.eps_high
        return -clipped_gain(ratio, inputs.advantages, low, high)
