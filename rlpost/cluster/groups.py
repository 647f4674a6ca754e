"""The worker groups of a run: its actors, packed into pods that are all alike within a group."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import ceil

from rlpost.cluster.kuberay_settings import KuberayConfig
from rlpost.cluster.packing import Size, check_fit, cpus, first_fit, gpus, node, size_of
from rlpost.errors import ConfigError
from rlpost.placing.seats import ROLES, Seat, benches, seats
from rlpost.schema import RunConfig
from rlpost.simulation.rates import PREFIX


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Pods of one kind, how many, and what each of them asks for."""

    name: str
    pods: int
    min_pods: int
    max_pods: int
    size: Size

    @property
    def grows(self) -> bool:
        """Whether the autoscaler may change the number of pods."""
        return self.min_pods != self.max_pods


def worker_groups(config: RunConfig, cluster: KuberayConfig) -> list[Group]:
    """Return the groups that hold a run's actors: learner, rollout, reference with a GPU, cpu.

    Engines that share GPUs with learner ranks are in the learner's.

    Raises:
        ConfigError: an actor is larger than a pod may be, or bounds contradict the recipe.
    """
    placed = seats(config, ROLES)
    members: dict[str, list[Seat]] = {}
    for seat in placed:
        helper = seat.role == "reward" or (seat.role == "reference" and not seat.num_gpus)
        with_ranks = "learner" if seat.shares else seat.role
        members.setdefault("cpu" if helper else with_ranks, []).append(seat)
    groups = [_group(name, found, placed, cluster) for name, found in members.items()]
    check_fit(
        placed,
        [
            node(f"{group.name}-{n}", group.size.ray_cpus, group.size.num_gpus, group=group.name)
            for group in groups
            for n in range(1, group.max_pods + 1)
        ],
    )
    return groups


def _group(
    name: str, members: Sequence[Seat], placed: Sequence[Seat], cluster: KuberayConfig
) -> Group:
    most = (name == "rollout" and cluster.rollout_per_pod) or len(members)
    pods = _packed(members, most, cluster)
    steady = _steady(pods, cluster)
    return Group(
        name=name,
        pods=steady,
        min_pods=steady,
        max_pods=len(pods),
        size=size_of(pods, placed, cluster),
    )


def _packed(members: Sequence[Seat], most: int, cluster: KuberayConfig) -> list[list[Seat]]:
    """Return each pod's actors, evenly where the benches are all alike."""
    pods = first_fit(members, cluster, num_cpus=cluster.node_cpus, most=most)
    units = benches(members)
    if len({(cpus(unit), gpus(unit)) for unit in units}) == 1:
        size = ceil(len(units) / len(pods))
        pods = [list(chain(*units[i : i + size])) for i in range(0, len(units), size)]
    return pods


def _steady(pods: Sequence[Sequence[Seat]], cluster: KuberayConfig) -> int:
    """Return how many pods hold the actors that a run begins with; the others come later."""
    steady = sum(any(not seat.elastic for seat in pod) for pod in pods)
    if steady < len(pods) and cluster.queue and cluster.scheduler == "kueue":
        raise ConfigError(
            f"{PREFIX}queue={cluster.queue} with rollout.min_workers, for which {steady} of "
            f"{len(pods)} pods do: Kueue admits a RayJob of fixed size: leave one of them out"
        )
    return steady
