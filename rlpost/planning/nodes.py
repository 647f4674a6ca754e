"""How many nodes a job's actors take, and who lies with whom."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rlpost.choices import Placement
from rlpost.seats import Seat

_SLACK = 1e-6


@dataclass(slots=True, kw_only=True)
class _Node:
    """A node as it fills: what is free, the labels that its actors ask for, the actors by role."""

    num_cpus: float
    num_gpus: float
    labels: dict[str, str] = field(default_factory=dict)
    actors: dict[str, int] = field(default_factory=dict)

    def takes(self, seats: Sequence[Seat]) -> bool:
        """Return whether these actors, alike but for their index, may join those that are here."""
        first, count = seats[0], len(seats)
        here = first.role in self.actors
        return (
            count * first.num_cpus <= self.num_cpus + _SLACK
            and count * first.num_gpus <= self.num_gpus + _SLACK
            and not (here and first.placement is Placement.strict_spread)
            and all(
                self.labels.get(key, value) == value for key, value in first.node_labels.items()
            )
        )

    def add(self, seats: Sequence[Seat]) -> None:
        first, count = seats[0], len(seats)
        self.num_cpus -= count * first.num_cpus
        self.num_gpus -= count * first.num_gpus
        self.labels |= first.node_labels
        self.actors[first.role] = self.actors.get(first.role, 0) + count


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
    """Return the actors one by one, but those that must share a node together."""
    found: list[list[Seat]] = []
    for seat in placed:
        packed = seat.placement is Placement.strict_pack
        if packed and found and found[-1][0].role == seat.role:
            found[-1].append(seat)
        else:
            found.append([seat])
    return found
