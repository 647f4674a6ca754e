"""What an objective gets, what it gives back, and what all objectives share."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlpost.metrics import Metrics
from rlpost.schema import ObjectiveConfig

ConfigT = TypeVar("ConfigT", bound=ObjectiveConfig)

CONTROLLED = 0.1
"""A token counts as controlled when its gradient weight is off the plain ratio's by this share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveInputs:
    """Per-token inputs `[B, T]`; `advantages` may be `[B]`.

    `logprobs` carry the gradient. `weights` are the tokens' shares in the global mean (see
    `rlpost.reduction`), zero where `loss_mask` is False.
    """

    logprobs: Float[Tensor, "B T"]
    old_logprobs: Float[Tensor, "B T"]
    advantages: Float[Tensor, "..."]
    loss_mask: Bool[Tensor, "B T"]
    weights: Float[Tensor, "B T"]

    def log_ratio(self) -> Float[Tensor, "B T"]:
        """Return d = logprobs - old_logprobs, in float32 or better, 0 under a False mask."""
        dtype = torch.promote_types(self.logprobs.dtype, torch.float32)
        logprobs = torch.where(self.loss_mask, self.logprobs, 0.0).to(dtype)
        old_logprobs = torch.where(self.loss_mask, self.old_logprobs, 0.0).to(dtype)
        return logprobs - old_logprobs.detach()

    def spread_advantages(self) -> Float[Tensor, "B T"]:
        """Return the advantages on every token, 0 under a False mask."""
        columns = self.advantages if self.advantages.ndim == 2 else self.advantages[:, None]
        dtype = torch.promote_types(self.logprobs.dtype, torch.float32)
        return torch.where(self.loss_mask, columns, 0.0).to(dtype)

    def masked_weights(self, dtype: torch.dtype) -> Float[Tensor, "B T"]:
        """Return the weights, 0 under a False mask."""
        return torch.where(self.loss_mask, self.weights, 0.0).to(dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveOutput:
    """A micro-batch's share of the loss, and what to report."""

    loss: Float[Tensor, ""]
    metrics: Metrics


class Objective(ABC, Generic[ConfigT]):
    """A ratio control: `objective(inputs, step=n)` gives loss and metrics."""

    default_reduction: ClassVar[str] = "token_mean"

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    def __call__(
        self, inputs: ObjectiveInputs, *, step: int = 0, progress: float | None = None
    ) -> ObjectiveOutput:
        """Return the weighted sum of the terms; `progress` in [0, 1] overrides `step`."""
        terms, multiplier, metrics = self.terms(inputs, step, progress)
        loss = (terms * inputs.masked_weights(terms.dtype)).sum()
        metrics.merge(_ratio_metrics(inputs, multiplier))
        return ObjectiveOutput(loss=loss, metrics=metrics)

    @abstractmethod
    def terms(
        self, inputs: ObjectiveInputs, step: int, progress: float | None
    ) -> tuple[Tensor, Tensor, Metrics]:
        """Return losses and the factors M of A * grad logprob, both `[B, T]`, and metrics."""


class TokenObjective(Objective[ConfigT]):
    """A ratio control that treats each token by its own ratio."""

    @abstractmethod
    def token_terms(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return each token's loss."""

    @abstractmethod
    def gradient_multiplier(self, log_ratio: Tensor, advantage_sign: Tensor) -> Tensor:
        """Return M in grad loss = -M A grad logprob."""

    def terms(
        self, inputs: ObjectiveInputs, step: int, progress: float | None
    ) -> tuple[Tensor, Tensor, Metrics]:
        """Apply the token terms; a token-level control has no metrics of its own."""
        del step, progress
        log_ratio, advantages = inputs.log_ratio(), inputs.spread_advantages()
        multiplier = self.gradient_multiplier(log_ratio.detach(), advantages.sign())
        return self.token_terms(log_ratio, advantages), multiplier, Metrics()


def _ratio_metrics(inputs: ObjectiveInputs, multiplier: Tensor) -> Metrics:
    """Return the metrics that every ratio control reports, over trained tokens."""
    metrics = Metrics()
    mask = inputs.loss_mask
    log_ratio = inputs.log_ratio().detach()[mask]
    if log_ratio.numel() == 0:
        return metrics
    ratio = log_ratio.clamp(-40.0, 40.0).exp()
    multiplier = multiplier.detach()[mask]
    controlled = (multiplier - ratio).abs() > CONTROLLED * ratio
    numbers = torch.stack(
        [ratio.sum(), ratio.max(), multiplier.sum(), multiplier.max(), controlled.sum()]
    ).tolist()
    count = float(log_ratio.numel())
    metrics.mean("policy/ratio_mean", numbers[0], count)
    metrics.maximum("policy/ratio_max", numbers[1])
    metrics.mean("policy/gradient_multiplier_mean", numbers[2], count)
    metrics.maximum("policy/gradient_multiplier_max", numbers[3])
    metrics.mean("policy/ratio_controlled_frac", numbers[4], count)
    return metrics
