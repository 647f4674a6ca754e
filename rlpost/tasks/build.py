"""From a recipe to its source of items."""

from collections.abc import Callable

from rlpost.errors import ConfigError
from rlpost.schema import RunConfig
from rlpost.tasks.custom import CustomSource
from rlpost.tasks.dataset import DatasetSource
from rlpost.tasks.generated import GeneratedSource
from rlpost.tasks.interface import Source

SOURCES: dict[str, Callable[[RunConfig], Source]] = {
    "reasoning_gym": GeneratedSource,
    "dataset": DatasetSource,
    "custom": CustomSource,
}


def build_source(config: RunConfig) -> Source:
    """Return the source that `task.kind` names.

    Raises:
        ConfigError: there is no such kind.
    """
    if config.task.kind not in SOURCES:
        raise ConfigError(
            f"task.kind={config.task.kind}: no such kind; available: {', '.join(SOURCES)}"
        )
    return SOURCES[config.task.kind](config)
