"""The actors of a run and what each of them asks for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rlpost.choices import Placement, WeightBackend
from rlpost.schema import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """An actor to be placed: its role, its index in the role, its resources, and where it may go.

    `placement` is how it lies to the others of its role, `node_labels` what its node must have.
    The run begins without an `elastic` one, which joins when the cluster has room for it.
    """

    role: str
    index: int
    num_cpus: float
    num_gpus: float
    placement: Placement = Placement.pack
    node_labels: Mapping[str, str] = field(default_factory=dict)
    elastic: bool = False

    @property
    def name(self) -> str:
        """The actor's name in messages."""
        return f"{self.role}-{self.index}"

    def bundle(self) -> dict[str, float]:
        """Return the resources as Ray writes them."""
        bundle = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        return {name: amount for name, amount in bundle.items() if amount} or {"CPU": 0.001}


def seats(config: RunConfig, roles: Sequence[str]) -> list[Seat]:
    """Return the actors of a run's roles, in the order in which they are placed."""
    learner, rollout = config.learner, config.rollout
    reward, reference = config.reward, config.reference
    table = {
        "learner": (learner.num_ranks, learner.num_cpus, learner.num_gpus),
        "rollout": (rollout.num_workers, rollout.num_cpus, rollout.num_gpus),
        "reference": (1 if config.kl_coef > 0 else 0, reference.num_cpus, reference.num_gpus),
        "reward": (reward.num_workers, reward.num_cpus, 0.0),
    }
    placements = {"learner": learner.placement, "rollout": rollout.placement}
    return [
        Seat(
            role=role,
            index=index,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            placement=placements.get(role, Placement.pack),
            node_labels=getattr(config, role).node_labels,
            elastic=role == "rollout" and index >= (rollout.min_workers or rollout.num_workers),
        )
        for role, (count, num_cpus, num_gpus) in table.items()
        if role in roles
        for index in range(count)
    ]


def together(placed: Sequence[Seat]) -> list[list[int]]:
    """Return which actors are reserved as one group: all that are packed, else a role's own.

    An elastic one is a group by itself.
    """
    groups: dict[tuple[Placement, str], list[int]] = {}
    for position, seat in enumerate(placed):
        role = "" if seat.placement is Placement.pack else seat.role
        whose = seat.name if seat.elastic else role
        groups.setdefault((seat.placement, whose), []).append(position)
    return list(groups.values())


def weight_backend(config: RunConfig) -> str:
    """Return the backend that `auto` stands for."""
    backend = config.weights.backend
    if backend is WeightBackend.auto:
        backend = WeightBackend.nccl if config.rollout.num_gpus else WeightBackend.shm
    return backend.value
