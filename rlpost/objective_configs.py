"""What a recipe may say of each objective; apart from them, so that no recipe waits for torch."""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

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
        _positive(self, "c", "k_pos", "lambda_pos", "k_neg", "lambda_neg")


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
        for name in ("p", "p_min", "p_max"):
            value = getattr(self, name)
            if not math.isfinite(value):
                raise ConfigError(f"objective.{name} must be finite, got {value}: try -2 to 2")
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
class HolderTokenConfig(HolderConfig):
    """As `holder`; `eps` bounds each token's ratio."""

    name: str = "holder_token"


@dataclass(kw_only=True)
class HolderSeqTokenClipConfig(HolderConfig):
    """As `holder`; `eps` bounds each token's ratio and the sequence's."""

    name: str = "holder_seq_token_clip"


@dataclass(kw_only=True)
class GspoConfig(ObjectiveConfig):
    """Bounds of a sequence's mean ratio, far closer to 1 than those of a token's."""

    name: str = "gspo"
    eps_low: float = 3e-4
    eps_high: float = 4e-4

    def __post_init__(self) -> None:
        if not 0 < self.eps_low < 1:
            raise ConfigError(f"objective.eps_low must lie in (0, 1), got {self.eps_low}: try 3e-4")
        _positive(self, "eps_high")


@dataclass(kw_only=True)
class GmpoConfig(ObjectiveConfig):
    """`log_clip` bounds each token's log-ratio."""

    name: str = "gmpo"
    log_clip: float = 0.4

    def __post_init__(self) -> None:
        _positive(self, "log_clip")


@dataclass(kw_only=True)
class CispoConfig(ObjectiveConfig):
    """1 + `eps_high` is the largest weight of a token."""

    name: str = "cispo"
    eps_high: float = 5.0

    def __post_init__(self) -> None:
        _positive(self, "eps_high")


@dataclass(kw_only=True)
class SapoConfig(ObjectiveConfig):
    """The larger a temperature, the narrower the gate around a ratio of 1."""

    name: str = "sapo"
    tau_pos: float = 1.0
    tau_neg: float = 1.05

    def __post_init__(self) -> None:
        _positive(self, "tau_pos", "tau_neg")


@dataclass(kw_only=True)
class ReinforceConfig(ObjectiveConfig):
    """It has no hyperparameters."""

    name: str = "reinforce"


@dataclass(kw_only=True)
class NoneConfig(ObjectiveConfig):
    """It has no hyperparameters."""

    name: str = "none"


@dataclass(kw_only=True)
class CustomConfig(ObjectiveConfig):
    """A user's own token losses: `path` is `package.module:function`, `parameters` its keywords.

    See `rlpost.objectives.custom`.
    """

    name: str = "custom"
    path: str = "???"
    parameters: dict[str, Any] = field(default_factory=dict)


def _positive(config: ObjectiveConfig, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not 0 < value < math.inf:
            raise ConfigError(
                f"objective.{name} must be positive and finite, got {value}: "
                f"the paper's value is {getattr(type(config), name)}"
            )


_ALL = (
    ClipConfig,
    MhpoConfig,
    HolderConfig,
    HolderTokenConfig,
    HolderSeqTokenClipConfig,
    GspoConfig,
    GmpoConfig,
    CispoConfig,
    SapoConfig,
    ReinforceConfig,
    NoneConfig,
    CustomConfig,
)
objective_configs: dict[str, type[ObjectiveConfig]] = {config.name: config for config in _ALL}


def objective_label(text: str) -> tuple[str, list[str]]:
    """Return the name and the `field=value` settings of `name` or `name:field=value:field=value`.

    Raises:
        ConfigError: it has another form, or there is no such objective.
    """
    name, *settings = text.split(":")
    if name not in objective_configs:
        known = ", ".join(objective_configs)
        raise ConfigError(f"{text}: there is no objective {name}; available: {known}")
    for setting in settings:
        if not all(setting.partition("=")):
            raise ConfigError(f"{text}: must have the form name:field=value:field=value")
    return name, settings
