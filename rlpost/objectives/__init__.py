"""Ratio-control objectives: pure functions from logprobs and advantages to a loss and metrics.

Use: `build("mhpo", c=1.5)(ObjectiveInputs(...))`, which returns `.loss` and `.metrics`.
"""

from dataclasses import fields
from typing import Any

from rlpost.errors import ConfigError
from rlpost.objectives.clip import Clip, ClipConfig
from rlpost.objectives.holder import Holder, HolderConfig
from rlpost.objectives.interface import Objective, ObjectiveInputs, ObjectiveOutput
from rlpost.objectives.mhpo import Mhpo, MhpoConfig
from rlpost.objectives.reinforce import Reinforce, ReinforceConfig
from rlpost.schema import ObjectiveConfig

__all__ = [
    "Objective",
    "ObjectiveInputs",
    "ObjectiveOutput",
    "build",
    "build_from",
    "objective_configs",
]

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
        ConfigError: there is no such objective, or a hyperparameter is unknown or impossible.
    """
    config_type, _ = _entry(name)
    known = [field.name for field in fields(config_type) if field.name != "name"]
    for field in hyperparameters:
        if field not in known:
            raise ConfigError(
                f"objective.{field}: {name} has no such hyperparameter; available: "
                f"{', '.join(known) or 'none'}"
            )
    return build_from(config_type(**hyperparameters))


def build_from(config: ObjectiveConfig) -> Objective[Any]:
    """Return the objective that a config describes.

    Raises:
        ConfigError: there is no such objective.
    """
    return _entry(config.name)[1](config)


def _entry(name: str) -> tuple[type[ObjectiveConfig], type[Objective[Any]]]:
    if name not in _TABLE:
        raise ConfigError(f"objective={name}: no such objective; available: {', '.join(_TABLE)}")
    return _TABLE[name]
