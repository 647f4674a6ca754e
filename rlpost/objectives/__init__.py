"""Ratio-control objectives: pure functions from logprobs and advantages to a loss and metrics.

Use: `build("mhpo", c=1.5)(ObjectiveInputs(...))`, which returns `.loss` and `.metrics`.
"""

from typing import Any

from rlpost.errors import ConfigError
from rlpost.objectives.clip import Clip, ClipConfig
from rlpost.objectives.holder import Holder, HolderConfig
from rlpost.objectives.interface import Objective, ObjectiveInputs, ObjectiveOutput
from rlpost.objectives.mhpo import Mhpo, MhpoConfig
from rlpost.objectives.reinforce import Reinforce, ReinforceConfig
from rlpost.schema import ObjectiveConfig

__all__ = ["ObjectiveInputs", "ObjectiveOutput", "build", "build_from", "objective_configs"]

_TABLE: dict[str, tuple[type[ObjectiveConfig], type[Objective[Any]]]] = {
    "clip": (ClipConfig, Clip),
    "holder": (HolderConfig, Holder),
    "mhpo": (MhpoConfig, Mhpo),
    "reinforce": (ReinforceConfig, Reinforce),
}

objective_configs: dict[str, type[ObjectiveConfig]] = {
    name: config for name, (config, _) in _TABLE.items()
}


def build(name: str, **hyperparameters: Any) -> Objective[Any]:
    """Return an objective by name.

    Raises:
        ConfigError: there is no such objective, or a hyperparameter is impossible.
    """
    if name not in _TABLE:
        raise ConfigError(f"objective={name}: no such objective; available: {', '.join(_TABLE)}")
    return build_from(_TABLE[name][0](name=name, **hyperparameters))


def build_from(config: ObjectiveConfig) -> Objective[Any]:
    """Return the objective that a config describes."""
    return _TABLE[config.name][1](config)
