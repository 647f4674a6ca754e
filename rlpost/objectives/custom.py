"""A user's own objective: a function of logprobs that returns each token's loss.

def wide_clip(logprobs, old_logprobs, advantages, loss_mask, *, width: float = 0.4):
if not width > 0:
raise ValueError("width must be positive")
ratio = (logprobs - old_logprobs).exp()
return -torch.minimum(ratio * advantages, ratio.clamp(max=1 + width) * advantages)

rlpost train objective=custom objective.path=mine:wide_clip +objective.parameters.width=0.3
"""

import inspect
from collections.abc import Mapping
from dataclasses import make_dataclass
from typing import Any, get_type_hints

import torch
from jaxtyping import Float
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from rlpost.errors import ConfigError
from rlpost.objective_configs import CustomConfig
from rlpost.objectives.interface import Objective, ObjectiveInputs
from rlpost.user_code import resolve


class Custom(Objective[CustomConfig]):
    """Calls the function with logprobs, old_logprobs, advantages and loss_mask, all `[B, T]`.

    Where the mask is False the others are 0, so that nothing there is infinite. The function's
    keyword-only parameters are the hyperparameters; their annotations and defaults say which
    values are allowed, and what else it refuses it raises. It is tried once on a small batch.

    Raises:
        ConfigError: there is no such function, it has no such parameter, or the trial failed.
    """

    def __init__(self, config: CustomConfig) -> None:
        super().__init__(config)
        self._function = resolve("objective.path", config.path)
        self._parameters = self._checked_parameters()
        self._try()

    def terms(self, inputs: ObjectiveInputs, values: Mapping[str, float]) -> Float[Tensor, "B T"]:
        """Call the user's function."""
        del values
        return self._function(
            inputs.logprobs,
            inputs.old_logprobs,
            inputs.advantages,
            inputs.loss_mask,
            **self._parameters,
        )

    def _checked_parameters(self) -> dict[str, Any]:
        """Return the hyperparameters, converted to the types that the function's signature says."""
        hints = get_type_hints(self._function)
        keywords = {
            name: parameter.default
            for name, parameter in inspect.signature(self._function).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
        for name in self.config.parameters:
            if name not in keywords:
                raise self._refused(
                    f"has no keyword-only parameter {name}; available: "
                    f"{', '.join(keywords) or 'none'}"
                )
        fields = [
            (name, hints.get(name, Any), MISSING if default is inspect.Parameter.empty else default)
            for name, default in keywords.items()
        ]
        try:
            schema = OmegaConf.structured(make_dataclass("Parameters", fields))
            merged = OmegaConf.merge(schema, self.config.parameters)
        except (OmegaConfBaseException, ValueError) as error:
            said = str(error).splitlines()[0]
            raise self._refused(
                f"with objective.parameters={self.config.parameters}: {said}"
            ) from None
        for name in OmegaConf.missing_keys(merged):
            raise self._refused(f"needs +objective.parameters.{name}=...")
        plain = OmegaConf.to_container(merged)
        assert isinstance(plain, dict)
        return {str(name): value for name, value in plain.items()}

    def _try(self) -> None:
        logprobs = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], dtype=torch.float64)
        inputs = ObjectiveInputs(
            logprobs=logprobs.requires_grad_(),
            old_logprobs=logprobs.detach() - 0.1,
            advantages=torch.tensor([1.0, -1.0], dtype=torch.float64),
            loss_mask=torch.tensor([[True, True], [True, False]]),
            weights=torch.ones(2, 2, dtype=torch.float64),
        )
        try:
            terms = self.terms(inputs.prepared(), {})
        except Exception as error:  # a user's function may raise anything
            raise self._refused(
                f"called with {self._parameters or 'no parameters'}, it raised "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(terms, Tensor) or terms.shape != logprobs.shape:
            shape = list(terms.shape) if isinstance(terms, Tensor) else type(terms).__name__
            raise self._refused(
                f"must return one loss a token, [B, T]={list(logprobs.shape)}, got {shape}"
            )
        if not terms.requires_grad or not bool(terms.isfinite().all()):
            raise self._refused(
                "its losses must be finite and depend on logprobs; for a batch of two short "
                f"sequences they are {terms.tolist()}"
            )

    def _refused(self, reason: str) -> ConfigError:
        return ConfigError(f"objective.path={self.config.path}: {reason}")
