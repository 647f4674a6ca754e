"""How an exponent moves from one end of its range to the other over training."""

import math

from rlpost.objective_configs import Schedule


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
