"""Actors packed into nodes, or pods: each into the first that has room."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import ceil

from rlpost.cluster.settings import SizedConfig
from rlpost.errors import ConfigError
from rlpost.placing.fitting import Node, misfits
from rlpost.placing.seats import Seat, benches
from rlpost.simulation.rates import PREFIX

_SLACK = 1e-6  # fractions of CPUs and GPUs are added up


def first_fit(
    members: Sequence[Seat], cluster: SizedConfig, *, num_cpus: float, most: int | None = None
) -> list[list[Seat]]:
    """Return each node's actors, where a node has so many CPUs and takes `most` benches.

    Raises:
        ConfigError: an actor, or what must lie with it, is larger than a node.
    """
    nodes: list[list[list[Seat]]] = []
    for bench in benches(members):
        _check_size(bench, cluster, num_cpus)
        fitting = (
            node
            for node in nodes
            if (most is None or len(node) < most)
            and cpus(chain(*node, bench)) <= num_cpus + _SLACK
            and gpus(chain(*node, bench)) <= cluster.node_gpus + _SLACK
        )
        node = next(fitting, None)
        if node is None:
            nodes.append([bench])
        else:
            node.append(bench)
    return [[seat for bench in node for seat in bench] for node in nodes]


def _check_size(bench: Sequence[Seat], cluster: SizedConfig, num_cpus: float) -> None:
    for name, limit in (("cpus", num_cpus), ("gpus", cluster.node_gpus)):
        asked = sum(getattr(seat, f"num_{name}") for seat in bench)
        if asked > limit:
            whose = "one actor" if len(bench) == 1 else f"{len(bench)} actors that share GPUs"
            raise ConfigError(
                f"{bench[0].role}.num_{name}={asked:g} of {whose} is more than the {limit:g} "
                f"that {PREFIX}node_{name} leaves to actors: lower it, or raise "
                f"{PREFIX}node_{name} to what a node can give"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What nodes, or pods, that are all alike need for their actors, shared memory included.

    `ray_cpus` is what each tells Ray that it has; Ray reserves these and limits nothing.
    """

    num_cpus: int
    num_gpus: int
    ray_cpus: int
    memory_gib: int


def size_of(nodes: Sequence[Sequence[Seat]], placed: Sequence[Seat], cluster: SizedConfig) -> Size:
    """Return the size that holds the actors of any of these nodes; `placed` are all of a run."""
    num_cpus = max(_whole(cpus(one)) for one in nodes)
    num_gpus = max(_whole(gpus(one)) for one in nodes)
    return Size(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        # Ray packs actors in an order of its own: any with GPUs must fit beside any GPU.
        ray_cpus=max(num_cpus, _whole(num_gpus * _cpus_beside_a_gpu(placed))),
        memory_gib=ceil(max(_memory_gib(one, cluster) for one in nodes)) + cluster.shm_gib,
    )


def cpus(actors: Iterable[Seat]) -> float:
    """Return the CPUs of some actors."""
    return sum(seat.num_cpus for seat in actors)


def gpus(actors: Iterable[Seat]) -> float:
    """Return the GPUs of some actors."""
    return sum(seat.num_gpus for seat in actors)


def _whole(amount: float) -> int:
    """Return an amount rounded up to a whole one."""
    return ceil(amount - _SLACK)


def _memory_gib(actors: Sequence[Seat], cluster: SizedConfig) -> float:
    """Return the memory that actors are given for their CPUs and GPUs."""
    return cpus(actors) * cluster.gib_per_cpu + gpus(actors) * cluster.gib_per_gpu


def _cpus_beside_a_gpu(placed: Sequence[Seat]) -> float:
    """Return the CPUs that actors with GPUs need beside each of them, at most."""
    with_gpus = (bench for bench in benches(placed) if gpus(bench))
    return max((cpus(bench) / gpus(bench) for bench in with_gpus), default=0.0)


def check_fit(placed: Sequence[Seat], nodes: Sequence[Node]) -> None:
    """Refuse what Ray could not place on such nodes.

    Raises:
        ConfigError: labels or a strict placement that the nodes cannot satisfy.
    """
    for problem in misfits(placed, nodes):
        raise ConfigError(f"on the {len(nodes)} nodes that would be asked for, {problem}")


def node(name: str, num_cpus: float, num_gpus: float, **labels: str) -> Node:
    """Return a node as Ray would know it."""
    return Node(name=name, labels=labels, resources={"CPU": num_cpus, "GPU": num_gpus})
