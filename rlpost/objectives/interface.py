"""What an objective gets, what it gives back, and what all objectives share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Generic, Self, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlpost.errors import DataError
from rlpost.metrics import Metrics
from rlpost.schema import ObjectiveConfig

ConfigT = TypeVar("ConfigT", bound=ObjectiveConfig)

MAX_EXPONENT = 40.0
"""No exponential goes beyond e^40 = 2.4e17, which float32 and bfloat16 hold with room to sum."""

CONTROLLED = 0.1
"""A token counts as controlled when its gradient weight is off the plain ratio's by this share."""

REMOVED = 0.01
"""A token counts as clipped when less than this share of its gradient weight is left."""


def bounded_exp(exponent: Tensor) -> Tensor:
    """Return exp(exponent), constant (so without gradient) above `MAX_EXPONENT`."""
    return exponent.clamp(max=MAX_EXPONENT).exp()


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveInputs:
    """Per-token inputs `[B, T]`; `advantages` may be `[B]`.

    `logprobs` carry the gradient. `weights` are the tokens' shares in the global mean (see
    `rlpost.reduction`), so the losses of micro-batches add.
    """

    logprobs: Float[Tensor, "B T"]
    old_logprobs: Float[Tensor, "B T"]
    advantages: Float[Tensor, "..."]
    loss_mask: Bool[Tensor, "B T"]
    weights: Float[Tensor, "B T"]

    def prepared(self) -> Self:
        """Return the inputs as objectives see them.

        All are `[B, T]`, in float32 or better, 0 under a False mask (so that a NaN there reaches
        neither loss nor gradient), and only `logprobs` carry a gradient.

        Raises:
            DataError: shapes do not fit.
        """
        shape, mask = self.logprobs.shape, self.loss_mask
        per_row = self.advantages.shape == shape[:1]
        advantages = self.advantages[:, None].expand(shape) if per_row else self.advantages
        others = {
            "old_logprobs": self.old_logprobs,
            "advantages": advantages,
            "loss_mask": mask,
            "weights": self.weights,
        }
        for name, value in others.items():
            if value.shape != shape:
                raise DataError(
                    f"{name} must have the shape of logprobs, {list(shape)}, "
                    f"got {list(getattr(self, name).shape)}"
                )
        dtype = torch.promote_types(self.logprobs.dtype, torch.float32)

        def clean(values: Tensor) -> Tensor:
            return torch.where(mask, values, 0.0).to(dtype)

        return type(self)(
            logprobs=clean(self.logprobs),
            old_logprobs=clean(self.old_logprobs).detach(),
            advantages=clean(advantages).detach(),
            loss_mask=mask,
            weights=clean(self.weights).detach(),
        )


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
        self, inputs: ObjectiveInputs, *, step: int | None = None, progress: float | None = None
    ) -> ObjectiveOutput:
        """Return the weighted sum of the terms.

        Scheduled hyperparameters follow `step`, or `progress` in [0, 1] where that is given.
        """
        inputs = inputs.prepared()
        values = self.at_step(step or 0, progress)
        loss = (self.terms(inputs, values) * inputs.weights).sum()
        metrics = _ratio_metrics(inputs, self.multiplier(inputs, values), self.on_policy_multiplier)
        for name, value in values.items():
            metrics.mean(f"objective/{name}", value, 1.0)
        return ObjectiveOutput(loss=loss, metrics=metrics)

    @cached_property
    def on_policy_multiplier(self) -> float:
        """The gradient multiplier M(1) of an unchanged token: the objective's scale."""
        one = torch.ones(1, 1, dtype=torch.float64)
        inputs = ObjectiveInputs(
            logprobs=0 * one,
            old_logprobs=0 * one,
            advantages=one,
            loss_mask=one.bool(),
            weights=one,
        )
        return float(self.multiplier(inputs, self.at_step(0)))

    def at_step(self, step: int, progress: float | None = None) -> Mapping[str, float]:
        """Return the scheduled hyperparameters, by name; reported as `objective/<name>`."""
        del step, progress
        return {}

    @abstractmethod
    def terms(self, inputs: ObjectiveInputs, values: Mapping[str, float]) -> Float[Tensor, "B T"]:
        """Return each token's loss, from prepared inputs; a sequence's loss on each of its tokens.

        It is proportional to the size of the advantage.
        """

    def multiplier(
        self, inputs: ObjectiveInputs, values: Mapping[str, float]
    ) -> Float[Tensor, "B T"]:
        """Return M in grad loss = -M A grad logprob, for equal weights within a sequence.

        It is what autograd finds in the terms. An advantage of 0, where the gradient vanishes for
        any M, counts as positive.
        """
        signs = torch.where(inputs.advantages < 0, -1.0, 1.0).to(inputs.logprobs.dtype)
        with torch.enable_grad():
            logprobs = inputs.logprobs.detach().clone().requires_grad_()
            terms = self.terms(replace(inputs, logprobs=logprobs, advantages=signs), values)
            trained = torch.where(inputs.loss_mask, terms, 0.0)
            (slope,) = torch.autograd.grad(trained.sum(), logprobs)
        return -slope * signs


class TokenObjective(Objective[ConfigT]):
    """A ratio control that treats each token by its own ratio."""

    @abstractmethod
    def token_terms(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
        """Return each token's loss; tensors of one shape, whichever it is."""

    def terms(self, inputs: ObjectiveInputs, values: Mapping[str, float]) -> Float[Tensor, "B T"]:
        """Apply the token terms."""
        del values
        return self.token_terms(inputs.logprobs, inputs.old_logprobs, inputs.advantages)

    def gradient_multiplier(
        self, log_ratio: Float[Tensor, "..."], advantage_sign: Float[Tensor, "..."] | float
    ) -> Float[Tensor, "..."]:
        """Return M of tokens with these log-ratios and signs of the advantage, broadcast."""
        signs = torch.as_tensor(advantage_sign).to(log_ratio)
        log_ratio, sign = torch.broadcast_tensors(log_ratio, signs)
        everywhere = torch.ones_like(log_ratio)
        inputs = ObjectiveInputs(
            logprobs=log_ratio,
            old_logprobs=torch.zeros_like(log_ratio),
            advantages=sign,
            loss_mask=everywhere.bool(),
            weights=everywhere,
        )
        return self.multiplier(inputs, {})


def _ratio_metrics(inputs: ObjectiveInputs, multiplier: Tensor, on_policy: float) -> Metrics:
    """Return the metrics of every ratio control over trained tokens, read from the device once.

    `policy/clip_frac` and `policy/ratio_controlled_frac` compare M with M(1) r, so that an
    objective's constant scale is not mistaken for control.
    """
    mask = inputs.loss_mask
    ratio = bounded_exp((inputs.logprobs.detach() - inputs.old_logprobs).clamp(min=-MAX_EXPONENT))
    plain = on_policy * ratio
    means = {
        "policy/ratio_mean": ratio,
        "policy/gradient_multiplier_mean": multiplier,
        "policy/ratio_controlled_frac": (multiplier - plain).abs() > CONTROLLED * plain,
        "policy/clip_frac": multiplier < REMOVED * plain,
    }
    maxima = {"policy/ratio_max": ratio, "policy/gradient_multiplier_max": multiplier}
    numbers = [mask.sum().double()]
    numbers += [torch.where(mask, value, 0).double().sum() for value in means.values()]
    numbers += [torch.where(mask, value, -torch.inf).amax().double() for value in maxima.values()]
    count, *numbers = torch.stack(numbers).tolist()
    metrics = Metrics()
    if count:
        for name, total in zip(means, numbers, strict=False):
            metrics.mean(name, total, count)
        for name, largest in zip(maxima, numbers[len(means) :], strict=True):
            metrics.maximum(name, largest)
    return metrics
