"""What a recipe may say of each objective; apart from them, so that no recipe waits for torch."""

import math
from dataclasses import dataclass
from enum import StrEnum

from rlpost.errors import ConfigError
from rlpost.schema import ObjectiveConfig


class Schedule(StrEnum):
    """Names of the schedules; `constant` stays where it is and needs no range."""

    constant = "constant"
    linear_dec = "linear_dec"
    linear = "linear"
    cos = "cos"
    sin = "sin"
    quad = "quad"
    quad_dec = "quad_dec"
    cubic = "cubic"
    cubic_dec = "cubic_dec"


def as_schedule(field: str, name: str) -> Schedule:
    """Return the schedule of that name.

    Raises:
        ConfigError: there is none; the message names the field.
    """
    if name not in tuple(Schedule):
        raise ConfigError(f"{field}={name}: no such schedule; available: {', '.join(Schedule)}")
    return Schedule(name)


@dataclass(kw_only=True)
class ClipConfig(ObjectiveConfig):
    """Bounds of the ratio: 1 - eps_low to 1 + eps_high; `dual_clip` c > 1 bounds A < 0."""

    name: str = "clip"
    eps_low: float = 0.2
    eps_high: float = 0.2
    dual_clip: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.eps_low < 1:
            raise ConfigError(f"objective.eps_low must lie in (0, 1), got {self.eps_low}: try 0.2")
        if not self.eps_high > 0:
            raise ConfigError(f"objective.eps_high must be positive, got {self.eps_high}: try 0.2")
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ConfigError(
                f"objective.dual_clip must be above 1, got {self.dual_clip}: try 3, or null"
            )


@dataclass(kw_only=True)
class MhpoConfig(ObjectiveConfig):
    """`c` bounds the log-ratio; k and lambda shape the hazard of rising and falling ratios.

    `lfm` and `dhp` switch the two parts off for ablations; `normalize_at_one` divides by M(1), so
    that an on-policy step is as large as that of `clip`.
    """

    name: str = "mhpo"
    c: float = 1.5
    k_pos: float = 1.5
    lambda_pos: float = 1.0
    k_neg: float = 2.0
    lambda_neg: float = 0.8
    lfm: bool = True
    dhp: bool = True
    normalize_at_one: bool = False

    def __post_init__(self) -> None:
        for field in ("c", "k_pos", "lambda_pos", "k_neg", "lambda_neg"):
            value = getattr(self, field)
            if not 0 < value < math.inf:
                raise ConfigError(
                    f"objective.{field} must be positive and finite, got {value}: "
                    f"the paper's value is {getattr(type(self), field)}"
                )


@dataclass(kw_only=True)
class HolderConfig(ObjectiveConfig):
    """`p` is used by `p_schedule=constant`; the others move from one end of the range to the other.

    `eps` bounds the sequence's ratio.
    """

    name: str = "holder"
    p: float = 1.0
    p_schedule: Schedule = Schedule.linear_dec
    p_max: float = 2.0
    p_min: float = -2.0
    schedule_steps: int = 500
    eps: float = 0.2

    def __post_init__(self) -> None:
        self.p_schedule = as_schedule("objective.p_schedule", self.p_schedule)
        for field in ("p", "p_min", "p_max"):
            value = getattr(self, field)
            if not math.isfinite(value):
                raise ConfigError(f"objective.{field} must be finite, got {value}: try -2 to 2")
        if self.p_min > self.p_max:
            raise ConfigError(
                f"objective.p_min={self.p_min} must not exceed objective.p_max={self.p_max}: "
                "swap them, and choose the direction with objective.p_schedule"
            )
        if self.schedule_steps < 1:
            raise ConfigError(
                f"objective.schedule_steps must be at least 1, got {self.schedule_steps}: "
                "a recipe takes it from its steps, the paper 500 to 1000"
            )
        if not 0 < self.eps < 1:
            raise ConfigError(f"objective.eps must lie in (0, 1), got {self.eps}: try 0.2")


@dataclass(kw_only=True)
class ReinforceConfig(ObjectiveConfig):
    """It has no hyperparameters."""

    name: str = "reinforce"


objective_configs: dict[str, type[ObjectiveConfig]] = {
    "clip": ClipConfig,
    "holder": HolderConfig,
    "mhpo": MhpoConfig,
    "reinforce": ReinforceConfig,
}
