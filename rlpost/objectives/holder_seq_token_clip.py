"""HölderPO with both clips: of the tokens' log-ratios, then of the sequence's ratio."""

import math
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from rlpost.objectives.holder import Holder
from rlpost.objectives.interface import ObjectiveInputs


class HolderSeqTokenClip(Holder):
    """`holder` on log-ratios bounded by +-log(1 + eps), whatever the advantage.

    The bounded ratios' mean lies in [1 / (1 + eps), 1 + eps], inside the sequence's clip, which
    therefore cuts nothing more. Source: arXiv 2605.12058.
    """

    def terms(self, inputs: ObjectiveInputs, values: Mapping[str, float]) -> Float[Tensor, "B T"]:
        """Return the clipped loss of the sequence of bounded tokens."""
        bound = math.log1p(self.config.eps)
        bounded = (inputs.logprobs - inputs.old_logprobs).clamp(-bound, bound)
        return self.sequence_loss(bounded, inputs, values["p"])
