"""A step's batch: how it is divided, and which groups may be in it."""

from collections.abc import Iterator

from rlpost.choices import Advantage
from rlpost.schema import RunConfig


def problems(config: RunConfig) -> Iterator[str]:
    """Yield why a batch cannot be made or taken."""
    yield from _division(config)
    yield from _scheduling(config)


def _division(config: RunConfig) -> Iterator[str]:
    if config.group_size < 2 and config.advantage is not Advantage.reinforce_baseline:
        yield (
            f"group_size={config.group_size} leaves advantage={config.advantage.value} nothing to "
            "compare with: use group_size of 2 or more"
        )
    batch = config.prompts_per_step * config.group_size
    cuts = config.minibatches * config.learner.num_ranks
    if batch % cuts:
        yield (
            f"prompts_per_step={config.prompts_per_step} x group_size={config.group_size} = "
            f"{batch} trajectories must be divisible by minibatches={config.minibatches} x "
            f"learner.num_ranks={config.learner.num_ranks} = {cuts}"
        )
    warm = config.warmstart
    if warm.steps and warm.batch_size % config.learner.num_ranks:
        yield (
            f"warmstart.batch_size={warm.batch_size} must be divisible by "
            f"learner.num_ranks={config.learner.num_ranks}"
        )


def _scheduling(config: RunConfig) -> Iterator[str]:
    factor, most = config.oversampling, config.staleness_bound + 1
    if config.max_staleness < 0:
        yield f"max_staleness must be 0 or more, got {config.max_staleness}: 0 samples as sync does"
    if factor is not None and not 1 < factor <= most:
        yield (
            f"oversampling={factor:g} must be above 1 and at most {most}, which is max_staleness + "
            f"1 in mode=async and 1 in mode=sync (here mode={config.mode.value}): what is left "
            "over is trained on in a later step; raise max_staleness, or use null"
        )
    if config.max_replacements < 0:
        yield f"max_replacements must be 0 (none) or more, got {config.max_replacements}"
    if config.max_replacements and config.group_size < 2:
        yield (
            f"max_replacements={config.max_replacements} replaces groups whose rewards are all "
            "equal, and group_size=1 leaves no other: use max_replacements=0"
        )
