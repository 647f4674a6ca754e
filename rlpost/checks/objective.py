"""The objective, and what corrects for older weights."""

import math
from collections.abc import Iterator

from rlpost.choices import Advantage, Correction, OldLogprobs
from rlpost.schema import RunConfig


def problems(config: RunConfig) -> Iterator[str]:
    """Yield what of the objective contradicts itself.

    Raises:
        ConfigError: a custom objective cannot be loaded.
    """
    yield from _bounds(config)
    yield from _staleness(config)
    if config.normalize_advantages and config.advantage is not Advantage.reinforce_baseline:
        yield (
            "normalize_advantages=true is for advantage=reinforce_baseline, got "
            f"advantage={config.advantage.value}: set it to false"
        )
    if config.objective.name == "custom":
        from rlpost.objectives import build_from

        build_from(config.objective)


def _bounds(config: RunConfig) -> Iterator[str]:
    correction = config.correction
    if not 0 < correction.low < correction.high < math.inf:
        yield (
            f"correction.low={correction.low} and correction.high={correction.high} must be "
            "positive, and low the smaller: try 0.5 and 2"
        )
    if not 0 < correction.cap < math.inf:
        yield f"correction.cap must be positive and finite, got {correction.cap}: try 2"


def _staleness(config: RunConfig) -> Iterator[str]:
    correction = config.correction
    behavior = config.old_logprobs is OldLogprobs.behavior
    if config.staleness_bound and not behavior and correction.kind is Correction.none:
        yield (
            f"mode=async with max_staleness={config.max_staleness} trains on samples of older "
            "weights, and nothing corrects for that: use old_logprobs=behavior, or name a "
            "correction: correction.kind=tis"
        )
    if behavior and correction.kind is not Correction.none:
        yield (
            f"old_logprobs=behavior lets the ratio start from vLLM, so correction.kind="
            f"{correction.kind.value} would correct nothing: use correction.kind=none, or "
            "old_logprobs=recompute"
        )
