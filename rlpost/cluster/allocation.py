"""A run's actors on nodes that are all alike, as Slurm hands them out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from rlpost.choices import Placement
from rlpost.cluster.packing import (
    check_fit,
    cpus,
    cpus_beside_a_gpu,
    first_fit,
    gpus,
    memory_gib,
    node,
    whole,
)
from rlpost.cluster.settings import SizedConfig
from rlpost.schema import RunConfig
from rlpost.seats import ROLES, Seat, benches, seats


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """So many nodes, and what is asked of each; `ray_cpus` is what it tells Ray that it has."""

    nodes: int
    num_cpus: int
    num_gpus: int
    ray_cpus: int
    memory_gib: int


def allocation(config: RunConfig, cluster: SizedConfig) -> Allocation:
    """Return the nodes that hold a run's actors; any of them may be the one with the driver.

    Raises:
        ConfigError: an actor is larger than a node.
    """
    placed = seats(config, ROLES)
    nodes = first_fit(placed, cluster, num_cpus=cluster.node_cpus - cluster.head_cpus)
    num_cpus = max(whole(cpus(one)) for one in nodes)
    num_gpus = max(whole(gpus(one)) for one in nodes)
    # Ray packs actors in an order of its own: any with GPUs must fit beside any GPU.
    ray_cpus = max(num_cpus, whole(num_gpus * cpus_beside_a_gpu(placed)))
    num_nodes = max(len(nodes), _apart(placed))
    check_fit(placed, [node(f"node{n}", ray_cpus, num_gpus) for n in range(1, num_nodes + 1)])
    return Allocation(
        nodes=num_nodes,
        num_cpus=num_cpus + cluster.head_cpus,
        num_gpus=num_gpus,
        ray_cpus=ray_cpus,
        memory_gib=ceil(max(memory_gib(one, cluster) for one in nodes))
        + cluster.head_gib
        + cluster.shm_gib,
    )


def _apart(placed: Sequence[Seat]) -> int:
    """Return the most actors of a role that must each have a node of their own."""
    first = (bench[0] for bench in benches(placed))
    strict = (seat.role for seat in first if seat.placement is Placement.strict_spread)
    return max(Counter(strict).values(), default=1)
