"""HölderPO: the Hölder mean of a sequence's ratios, with an exponent that moves over training."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from rlpost.objective_configs import HolderConfig, Schedule
from rlpost.objectives.clip import clipped_gain
from rlpost.objectives.holder_mean import holder_log_mean
from rlpost.objectives.interface import Objective, ObjectiveInputs, bounded_exp
from rlpost.objectives.schedules import scheduled


class Holder(Objective[HolderConfig]):
    """-min(rho A, clip(rho, 1 - eps, 1 + eps) A), rho = ((1/T) sum_t r_t^p)^(1/p) of a sequence.

    d log rho / d log r_t = r_t^p / sum_s r_s^p: where the clip does not bind, a token's share in
    its sequence's gradient. On policy it is 1/T for every p; and log rho is about the mean
    log-ratio plus p/2 times its variance, so that a clip of 0.2 seldom binds. p = 0 is `gspo`.
    Source: arXiv 2605.12058.
    """

    default_reduction = "sequence_mean"

    def at_step(self, step: int, progress: float | None = None) -> Mapping[str, float]:
        """Return p at a step."""
        config = self.config
        if config.p_schedule is Schedule.constant:
            return {"p": config.p}
        x = step / config.schedule_steps if progress is None else progress
        return {"p": scheduled(config.p_schedule, x, config.p_min, config.p_max)}

    def terms(self, inputs: ObjectiveInputs, values: Mapping[str, float]) -> Float[Tensor, "B T"]:
        """Return the clipped sequence's loss."""
        return self.sequence_loss(inputs.logprobs - inputs.old_logprobs, inputs, values["p"])

    def sequence_loss(
        self, log_ratio: Float[Tensor, "B T"], inputs: ObjectiveInputs, p: float
    ) -> Float[Tensor, "B T"]:
        """Return the clipped loss of the sequence whose tokens have these log-ratios."""
        rho = bounded_exp(holder_log_mean(log_ratio, inputs.loss_mask, p))[:, None]
        return -clipped_gain(rho, inputs.advantages, 1 - self.config.eps, 1 + self.config.eps)
