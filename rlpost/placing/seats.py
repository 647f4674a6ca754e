"""The actors of a run and what each of them asks for."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from rlpost.choices import Placement
from rlpost.placing.sharing import num_sharing
from rlpost.schema import RunConfig

ROLES = ("learner", "rollout", "reference", "reward")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """An actor to be placed: its role, its index in the role, its resources, and where it may go.

    `placement` is how it lies to the others of its role, `node_labels` what its node must have.
    The run begins without an `elastic` one, which joins when the cluster has room for it. Actors
    with the same `bench` are placed as one: an engine, and the learner ranks whose GPUs it shares.
    """

    role: str
    index: int
    num_cpus: float
    num_gpus: float
    placement: Placement = Placement.pack
    node_labels: Mapping[str, str] = field(default_factory=dict)
    elastic: bool = False
    bench: int | None = None

    @property
    def name(self) -> str:
        """The actor's name in messages."""
        return f"{self.role}-{self.index}"

    @property
    def shares(self) -> bool:
        """Whether it is an engine on the GPUs of learner ranks."""
        return self.role == "rollout" and self.bench is not None


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
    placed = [
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
    return [_seated(seat, config) for seat in placed]


def _seated(seat: Seat, config: RunConfig) -> Seat:
    """Return an actor on its bench, if it shares one.

    The ranks ask for the GPUs, and for the cores that they and the engine use by turns; the engine
    for the cores that it needs beyond theirs.
    """
    learner, rollout = config.learner, config.rollout
    size, sharing = rollout.tensor_parallel_size, num_sharing(config)
    if seat.role == "learner" and sharing:
        return replace(seat, bench=seat.index // size)
    if seat.role == "rollout" and seat.index < sharing:
        return replace(
            seat,
            num_cpus=max(0.0, rollout.num_cpus - size * learner.num_cpus),
            num_gpus=0.0,
            placement=learner.placement,
            node_labels=learner.node_labels,
            bench=seat.index,
        )
    return seat


def benches(placed: Sequence[Seat]) -> list[list[Seat]]:
    """Return the actors that are placed as one, most of them alone."""
    found: dict[int | str, list[Seat]] = {}
    for seat in placed:
        found.setdefault(seat.name if seat.bench is None else seat.bench, []).append(seat)
    return list(found.values())


def bundle(bench: Sequence[Seat]) -> dict[str, float]:
    """Return the resources of a bench as Ray writes them."""
    amounts = Counter[str]()
    for seat in bench:
        amounts.update({"CPU": seat.num_cpus, "GPU": seat.num_gpus})
    return {name: amount for name, amount in amounts.items() if amount} or {"CPU": 0.001}


def together(placed: Sequence[Seat]) -> list[list[list[Seat]]]:
    """Return which benches are reserved as one group: all that are packed, else a role's own.

    An elastic actor is a group by itself.
    """
    groups: dict[tuple[Placement, str], list[list[Seat]]] = {}
    for bench in benches(placed):
        first = bench[0]
        role = "" if first.placement is Placement.pack else first.role
        whose = first.name if first.elastic else role
        groups.setdefault((first.placement, whose), []).append(bench)
    return list(groups.values())
