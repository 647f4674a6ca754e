"""HölderPO with tokens clipped before their mean is taken."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from rlpost.objectives.holder import Holder
from rlpost.objectives.holder_mean import holder_log_mean
from rlpost.objectives.interface import ObjectiveInputs, bounded_exp


class HolderToken(Holder):
    """-rho A, rho the Hölder mean of min(r, 1 + eps) for A > 0 and of max(r, 1 - eps) for A < 0.

    p = 1 is `clip`; p = 0 is `gmpo` with the same bounds. Source: arXiv 2605.12058.
    """

    def terms(self, inputs: ObjectiveInputs, values: Mapping[str, float]) -> Float[Tensor, "B T"]:
        """Return the loss of the sequence of clipped tokens."""
        eps, advantages = self.config.eps, inputs.advantages
        log_ratio = inputs.logprobs - inputs.old_logprobs
        bounded = torch.where(
            advantages < 0,
            log_ratio.clamp(min=math.log1p(-eps)),
            log_ratio.clamp(max=math.log1p(eps)),
        )
        rho = bounded_exp(holder_log_mean(bounded, inputs.loss_mask, values["p"]))[:, None]
        return -rho * advantages
