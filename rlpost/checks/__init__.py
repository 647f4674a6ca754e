"""Combinations that no machine can run, refused before anything starts.

Each module has the rules of one subject, as `problems(config)`: sentences that name field, rule,
value and remedy.
"""

from collections.abc import Callable, Iterator

from rlpost.checks import batch, devices, model, objective, ranges, records, roles, sampling, task
from rlpost.errors import ConfigError
from rlpost.schema import RunConfig

__all__ = ["check"]

_SUBJECTS: tuple[Callable[[RunConfig], Iterator[str]], ...] = (
    ranges.problems,
    batch.problems,
    objective.problems,
    sampling.problems,
    model.problems,
    roles.problems,
    devices.problems,
    task.problems,
    records.problems,
)


def check(config: RunConfig) -> None:
    """Raise ConfigError for the first impossible combination."""
    for problems in _SUBJECTS:
        for problem in problems(config):
            raise ConfigError(problem)
