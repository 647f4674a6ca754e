"""Ratio-control objectives: pure functions from logprobs and advantages to a loss and metrics.

Use: `build("mhpo", c=1.5)(ObjectiveInputs(...))`, which returns `.loss` and `.metrics`.
"""

from dataclasses import fields
from typing import Any

from rlpost.errors import ConfigError
from rlpost.objective_configs import objective_configs
from rlpost.objectives.cispo import Cispo
from rlpost.objectives.clip import Clip
from rlpost.objectives.custom import Custom
from rlpost.objectives.gmpo import Gmpo
from rlpost.objectives.gspo import Gspo
from rlpost.objectives.holder import Holder
from rlpost.objectives.holder_seq_token_clip import HolderSeqTokenClip
from rlpost.objectives.holder_token import HolderToken
from rlpost.objectives.interface import Objective, ObjectiveInputs, ObjectiveOutput
from rlpost.objectives.mhpo import Mhpo
from rlpost.objectives.none import Uncontrolled
from rlpost.objectives.reinforce import Reinforce
from rlpost.objectives.sapo import Sapo
from rlpost.schema import ObjectiveConfig

__all__ = [
    "Objective",
    "ObjectiveInputs",
    "ObjectiveOutput",
    "build",
    "build_from",
    "objective_configs",
]

_TABLE: dict[str, type[Objective[Any]]] = {
    "clip": Clip,
    "mhpo": Mhpo,
    "holder": Holder,
    "holder_token": HolderToken,
    "holder_seq_token_clip": HolderSeqTokenClip,
    "gspo": Gspo,
    "gmpo": Gmpo,
    "cispo": Cispo,
    "sapo": Sapo,
    "reinforce": Reinforce,
    "none": Uncontrolled,
    "custom": Custom,
}


def build(name: str, **hyperparameters: Any) -> Objective[Any]:
    """Return an objective by name.

    Raises:
        ConfigError: there is no such objective, or a hyperparameter is unknown or impossible.
    """
    _known(name)
    config_type = objective_configs[name]
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
    return _known(config.name)(config)


def _known(name: str) -> type[Objective[Any]]:
    if name not in _TABLE:
        raise ConfigError(f"objective={name}: no such objective; available: {', '.join(_TABLE)}")
    return _TABLE[name]
