"""How an exponent moves from one end of its range to the other over training."""

import math
from enum import StrEnum

from rlpost.errors import ConfigError


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


def scheduled(schedule: Schedule, progress: float, low: float, high: float) -> float:
    """Return the value at `progress` in [0, 1] of any schedule but `constant`.

    Source: arXiv 2605.12058; `mid` and `amp` are the range's centre and half-width.
    """
    x = min(1.0, max(0.0, progress))
    span, mid, amp = high - low, (high + low) / 2, (high - low) / 2
    values = {
        Schedule.linear_dec: high - span * x,
        Schedule.linear: low + span * x,
        Schedule.cos: mid + amp * math.cos(math.pi * x),
        Schedule.sin: mid - amp * math.cos(math.pi * x),
        Schedule.quad: low + span * x**2,
        Schedule.quad_dec: high - span * x**2,
        Schedule.cubic: mid + amp * (2 * x - 1) ** 3,
        Schedule.cubic_dec: mid - amp * (2 * x - 1) ** 3,
    }
    return values[schedule]
