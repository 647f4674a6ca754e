"""Where actors go: one bundle an actor, refused at once with the arithmetic if they do not fit."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlpost.errors import ResourceError
from rlpost.fitting import Node, misfits, terms
from rlpost.seats import Seat, together


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An actor's bundle for Ray, and the node it lies on: its address and Ray's id of it."""

    strategy: PlacementGroupSchedulingStrategy
    node: str
    node_id: str


class Reservation:
    """The bundles of a run's actors, by their position among the seats, until `release()`."""

    def __init__(self, bundles: Mapping[int, tuple[PlacementGroup, int]]) -> None:
        self._bundles = bundles

    def place(self, position: int) -> Place:
        """Return where an actor goes as things stand: a bundle moves when its node is lost."""
        group, index = self._bundles[position]
        node_id = ray.util.placement_group_table(group)["bundles_to_node_id"][index]
        names = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        return Place(
            strategy=PlacementGroupSchedulingStrategy(
                placement_group=group, placement_group_bundle_index=index
            ),
            node=names.get(node_id, "unknown"),
            node_id=node_id,
        )

    def release(self) -> None:
        """Give everything back."""
        for group in {group.id: group for group, _ in self._bundles.values()}.values():
            with suppress(Exception):
                ray.util.remove_placement_group(group)


def reserve(wanted: Sequence[Seat], timeout_s: float) -> Reservation:
    """Reserve all bundles at once.

    Raises:
        ResourceError: the cluster is too small, or too busy within `timeout_s`.
    """
    for problem in misfits(wanted, nodes()):
        raise ResourceError(problem)
    bundles: dict[int, tuple[PlacementGroup, int]] = {}
    for positions in together(wanted):
        group = _group([wanted[position] for position in positions])
        bundles |= {position: (group, index) for index, position in enumerate(positions)}
    reservation = Reservation(bundles)
    deadline = time.monotonic() + timeout_s
    for group, _ in bundles.values():
        if not group.wait(max(0.0, deadline - time.monotonic())):
            reservation.release()
            raise ResourceError(
                f"the cluster could not place {len(wanted)} actors within "
                f"ray.placement_timeout_s={timeout_s:g}: {terms(wanted, 'CPU')}; "
                f"{terms(wanted, 'GPU')}; free now: {_free(ray.available_resources())}. "
                "Stop other jobs, or ask for less"
            )
    return reservation


def _group(seats: Sequence[Seat]) -> PlacementGroup:
    labels = [dict(seat.node_labels) for seat in seats]
    return placement_group(
        [seat.bundle() for seat in seats],
        strategy=seats[0].placement.value.upper(),
        bundle_label_selector=labels if any(labels) else None,  # type: ignore[arg-type]  # its default
    )


def nodes() -> list[Node]:
    """Return the cluster's living nodes."""
    return [
        Node(
            name=node["NodeManagerAddress"],
            labels=node.get("Labels", {}),
            resources=node.get("Resources", {}),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def room(wanted: Sequence[Seat]) -> int:
    """Return how many times over these actors fit into what is free now, at least once."""
    free = ray.available_resources()
    needed = Counter[str]()
    for seat in wanted:
        needed.update(seat.bundle())
    # Several nodes may hold fewer than the sum of their free resources says: `reserve` then tells.
    return max(1, min(int(free.get(name, 0.0) / n + 1e-6) for name, n in needed.items()))


def _free(available: Mapping[str, Any]) -> str:
    return f"{available.get('CPU', 0):g} CPU, {available.get('GPU', 0):g} GPU"
