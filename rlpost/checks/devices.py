"""What the actors ask for, and what this machine has."""

import os
from collections.abc import Iterator

from rlpost.machine import gpus
from rlpost.placing.fitting import needed, terms
from rlpost.placing.seats import ROLES, seats
from rlpost.schema import RunConfig


def problems(config: RunConfig) -> Iterator[str]:
    """Yield what this machine lacks, when Ray is started on it."""
    if config.ray.address is not None:
        return
    if config.ray.nodes:
        yield (
            f"ray.nodes=[{','.join(config.ray.nodes)}] are those of a cluster, and ray.address is "
            "not set: set it, or leave ray.nodes out"
        )
    placed = seats(config, ROLES)
    cores = config.ray.num_cpus or os.cpu_count() or 1
    there = config.ray.num_gpus if config.ray.num_gpus is not None else len(gpus())
    if (want := needed(placed, "GPU")) > there:
        yield (
            f"the actors need {want:g} GPUs ({terms(placed, 'GPU')}) and this machine has {there}: "
            "ask for less, or set ray.address to a cluster"
        )
    if (want := needed(placed, "CPU")) > cores + 1e-6:
        yield (
            f"the actors need {want:g} CPUs ({terms(placed, 'CPU')}) and this machine has {cores}: "
            "lower <role>.num_cpus (it reserves, it does not limit), or use fewer ranks or workers"
        )
