"""Where actors go: a bundle for each bench, refused at once with the arithmetic if too many."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import state
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlpost.errors import ResourceError
from rlpost.placing.fitting import Node, misfits, terms
from rlpost.placing.seats import Seat, benches, bundle, together


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

    def has_room(self, position: int) -> bool:
        """Say whether an actor has a place, on a node that nobody is about to take away."""
        group, index = self._bundles[position]
        table = ray.util.placement_group_table(group)
        node_id = table["bundles_to_node_id"].get(index)
        return table["state"] == "CREATED" and node_id not in leaving_nodes()

    def place(self, position: int) -> Place:
        """Return where an actor goes as things stand: a bundle moves when its node is lost."""
        group, index = self._bundles[position]
        node_id = ray.util.placement_group_table(group)["bundles_to_node_id"].get(index, "")
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
    """Reserve all bundles at once, those of elastic actors for when there is room.

    Raises:
        ResourceError: the cluster is too small, or too busy within `timeout_s`.
    """
    needed = [seat for seat in wanted if not seat.elastic]
    for problem in misfits(needed, nodes()):
        raise ResourceError(problem)
    bundles: dict[int, tuple[PlacementGroup, int]] = {}
    positions = {seat.name: position for position, seat in enumerate(wanted)}
    for members in together(wanted):
        group = _group(members)
        for index, bench in enumerate(members):
            bundles |= {positions[seat.name]: (group, index) for seat in bench}
    reservation = Reservation(bundles)
    deadline = time.monotonic() + timeout_s
    for position, (group, _) in bundles.items():
        if wanted[position].elastic:
            continue
        if not group.wait(max(0.0, deadline - time.monotonic())):
            reservation.release()
            raise ResourceError(
                f"the cluster could not place {len(needed)} actors within "
                f"ray.placement_timeout_s={timeout_s:g}: {terms(needed, 'CPU')}; "
                f"{terms(needed, 'GPU')}; free now: {_free(ray.available_resources())}. "
                "Stop other jobs, or ask for less"
            )
    return reservation


def leaving_nodes() -> set[str]:
    """Return the ids of the nodes that Ray has been told to drain."""
    return set(state.get_draining_nodes())


def _group(members: Sequence[Sequence[Seat]]) -> PlacementGroup:
    labels = [dict(bench[0].node_labels) for bench in members]
    return placement_group(
        [bundle(bench) for bench in members],
        strategy=members[0][0].placement.value.upper(),
        bundle_label_selector=labels if any(labels) else None,  # its default
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
    for bench in benches(wanted):
        needed.update(bundle(bench))
    # Several nodes may hold fewer than the sum of their free resources says: `reserve` then tells.
    return max(1, min(int(free.get(name, 0.0) / n + 1e-6) for name, n in needed.items()))


def _free(available: Mapping[str, Any]) -> str:
    return f"{available.get('CPU', 0):g} CPU, {available.get('GPU', 0):g} GPU"
