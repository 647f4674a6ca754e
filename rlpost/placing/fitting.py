"""Whether a cluster's nodes can hold a run's actors, and the arithmetic where they cannot."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rlpost.choices import Placement
from rlpost.placing.seats import Seat, benches, bundle, together

_SLACK = 1e-6
_RESOURCES = ("CPU", "GPU")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of the cluster: its address, its labels, and all that it has, free or not."""

    name: str
    labels: Mapping[str, str]
    resources: Mapping[str, float]

    def __str__(self) -> str:
        """Say what the node is."""
        amounts = " ".join(f"{self.resources.get(name, 0.0):g} {name}" for name in _RESOURCES)
        labels = {k: v for k, v in self.labels.items() if not k.startswith("ray.io/")}
        return f"{self.name} ({amounts}{f', {written(labels)}' if labels else ''})"


def misfits(wanted: Sequence[Seat], nodes: Sequence[Node]) -> Iterator[str]:
    """Yield the reasons why no empty cluster of these nodes could hold all actors at once."""
    yield from _too_much(wanted, nodes, "the cluster has")
    for labels in dict.fromkeys(written(seat.node_labels) for seat in wanted):
        seats = [seat for seat in wanted if written(seat.node_labels) == labels]
        able = [node for node in nodes if has_labels(node, seats[0])]
        asked = f"{seats[0].role}.node_labels={labels}"
        if not able:
            yield (
                f"no node has the labels of {asked}: {_listed(nodes)}. Start Ray on some with "
                "--labels=KEY=VALUE, or ask for others"
            )
            continue
        yield from _too_much(seats, able, f"the nodes with the labels of {asked} have")
        yield from _too_large(seats, able)
    for group in together(wanted):
        yield from _misplaced(group, nodes)


def has_labels(node: Node, seat: Seat) -> bool:
    """Return whether an actor's labels let it onto a node."""
    return all(node.labels.get(key) == value for key, value in seat.node_labels.items())


def needed(wanted: Sequence[Seat], resource: str) -> float:
    """Return how much of a resource these actors reserve."""
    return sum(bundle(bench).get(resource, 0.0) for bench in benches(wanted))


def terms(wanted: Sequence[Seat], resource: str) -> str:
    """Return the sum of a resource as it is made up: `GPU: 4 learner x 1 + 2 rollout x 4`."""
    counts = Counter((seat.role, _amount(seat, resource)) for seat in wanted)
    found = [f"{count} {role} x {amount:g}" for (role, amount), count in counts.items() if amount]
    return f"{resource}: {' + '.join(found) or 'none'}"


def _amount(seat: Seat, resource: str) -> float:
    return seat.num_cpus if resource == "CPU" else seat.num_gpus


def written(labels: Mapping[str, str]) -> str:
    """Return labels as an override writes them."""
    return f"{{{', '.join(f'{key}: {value}' for key, value in sorted(labels.items()))}}}"


def _too_much(seats: Sequence[Seat], nodes: Sequence[Node], there: str) -> Iterator[str]:
    for resource in _RESOURCES:
        amount = sum(node.resources.get(resource, 0.0) for node in nodes)
        if needed(seats, resource) > amount + _SLACK:
            yield (
                f"the run needs {needed(seats, resource):g} {resource} and {there} {amount:g}: "
                f"{terms(seats, resource)}. Ask for less with <role>.num_{resource.lower()}s or "
                "fewer workers, or give Ray more"
            )


def _too_large(seats: Sequence[Seat], nodes: Sequence[Node]) -> Iterator[str]:
    """A bench must fit on one node: a tensor-parallel engine with all its GPUs."""
    for bench in benches(seats):
        if not any(_holds(node, bench) for node in nodes):
            names, role = " and ".join(seat.name for seat in bench), bench[0].role
            yield (
                f"{names} {'needs' if len(bench) == 1 else 'together need'} {_amounts(bench)} on "
                f"one node, and none has that: {_listed(nodes)}. Lower {role}.num_gpus or "
                f"{role}.num_cpus"
            )
            return


def _misplaced(group: Sequence[Sequence[Seat]], nodes: Sequence[Node]) -> Iterator[str]:
    seats, first = [seat for bench in group for seat in bench], group[0][0]
    asked = f"{first.role}.placement={first.placement.value}"
    able = [node for node in nodes if has_labels(node, first) and _holds(node, group[0])]
    if first.placement is Placement.strict_pack and not any(_holds(node, seats) for node in able):
        yield (
            f"{asked} puts {len(seats)} actors with {_amounts(seats)} on one node, and none has "
            f"that: {_listed(nodes)}. Ask for less, or use {first.role}.placement=pack"
        )
    if first.placement is Placement.strict_spread and len(able) < len(group):
        yield (
            f"{asked} puts {len(seats)} actors on {len(group)} nodes, and {len(able)} can hold "
            f"one: {_listed(nodes)}. Ask for fewer, or use {first.role}.placement=spread"
        )


def _holds(node: Node, seats: Sequence[Seat]) -> bool:
    return all(
        needed(seats, resource) <= node.resources.get(resource, 0.0) + _SLACK
        for resource in _RESOURCES
    )


def _amounts(seats: Sequence[Seat]) -> str:
    found = [f"{needed(seats, name):g} {name}" for name in _RESOURCES if needed(seats, name)]
    return " and ".join(found)


def _listed(nodes: Sequence[Node]) -> str:
    return "; ".join(map(str, nodes[:8])) + (f"; and {len(nodes) - 8} more" if nodes[8:] else "")
