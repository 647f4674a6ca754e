"""REINFORCE; with advantage 1 it is the negative log-likelihood of a supervised warm start."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlpost.metrics import Metrics
from rlpost.objectives.interface import Objective, ObjectiveInputs
from rlpost.schema import ObjectiveConfig


@dataclass(kw_only=True)
class ReinforceConfig(ObjectiveConfig):
    """It has no hyperparameters."""

    name: str = "reinforce"


class Reinforce(Objective[ReinforceConfig]):
    """-A logprob. Source: Williams 1992."""

    def terms(
        self, inputs: ObjectiveInputs, step: int, progress: float | None
    ) -> tuple[Tensor, Tensor, Metrics]:
        """Return each token's term; its gradient multiplier is 1."""
        del step, progress
        advantages = inputs.spread_advantages()
        logprobs = torch.where(inputs.loss_mask, inputs.logprobs, 0.0).to(advantages.dtype)
        return -advantages * logprobs, torch.ones_like(advantages), Metrics()
