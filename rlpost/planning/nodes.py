"""How many nodes a job's actors take, and who lies with whom."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rlpost.choices import Placement
from rlpost.placing.seats import Seat, benches

_SLACK = 1e-6


@dataclass(slots=True, kw_only=True)
class _Node:
    """A node as it fills: what is free, the labels that its actors ask for, the actors by role."""

    num_cpus: float
    num_gpus: float
    labels: dict[str, str] = field(default_factory=dict)
    actors: dict[str, int] = field(default_factory=dict)

    def takes(self, seats: Sequence[Seat]) -> bool:
        """Return whether these actors, with labels and placement alike, may join the others."""
        first = seats[0]
        here = first.role in self.actors
        return (
            sum(seat.num_cpus for seat in seats) <= self.num_cpus + _SLACK
            and sum(seat.num_gpus for seat in seats) <= self.num_gpus + _SLACK
            and not (here and first.placement is Placement.strict_spread)
            and all(
                self.labels.get(key, value) == value for key, value in first.node_labels.items()
            )
        )

    def add(self, seats: Sequence[Seat]) -> None:
        for seat in seats:
            self.num_cpus -= seat.num_cpus
            self.num_gpus -= seat.num_gpus
            self.actors[seat.role] = self.actors.get(seat.role, 0) + 1
        self.labels |= seats[0].node_labels


def fill_nodes(placed: Sequence[Seat], num_cpus: float, num_gpus: float) -> list[dict[str, int]]:
    """Return each node's actors by role: in order, into the first node that may take them.

    `spread` prefers the node with the fewest of the role, among those that are needed so far.
    """
    nodes: list[_Node] = []
    for seats in _inseparable(placed):
        able = [node for node in nodes if node.takes(seats)]
        if seats[0].placement is Placement.spread:
            able.sort(key=lambda node: node.actors.get(seats[0].role, 0))
        if not able:
            able = [_Node(num_cpus=num_cpus, num_gpus=num_gpus)]
            nodes += able
        able[0].add(seats)
    return [node.actors for node in nodes]


def _inseparable(placed: Sequence[Seat]) -> list[list[Seat]]:
    """Return the actors bench by bench, but those that must share a node together."""
    found: list[list[Seat]] = []
    for bench in benches(placed):
        packed = bench[0].placement is Placement.strict_pack
        if packed and found and found[-1][0].role == bench[0].role:
            found[-1] += bench
        else:
            found.append(bench)
    return found
