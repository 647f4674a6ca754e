"""A run's actors on nodes that are all alike, as Slurm hands them out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rlpost.choices import Placement
from rlpost.cluster.packing import check_fit, first_fit, node, size_of
from rlpost.cluster.settings import SizedConfig
from rlpost.placing.seats import ROLES, Seat, benches, seats
from rlpost.schema import RunConfig


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
    size = size_of(nodes, placed, cluster)
    names = [f"node{n}" for n in range(1, max(len(nodes), _apart(placed)) + 1)]
    check_fit(placed, [node(name, size.ray_cpus, size.num_gpus) for name in names])
    return Allocation(
        nodes=len(names),
        num_cpus=size.num_cpus + cluster.head_cpus,
        num_gpus=size.num_gpus,
        ray_cpus=size.ray_cpus,
        memory_gib=size.memory_gib + cluster.head_gib,
    )


def _apart(placed: Sequence[Seat]) -> int:
    """Return the most actors of a role that must each have a node of their own."""
    first = (bench[0] for bench in benches(placed))
    strict = (seat.role for seat in first if seat.placement is Placement.strict_spread)
    return max(Counter(strict).values(), default=1)
