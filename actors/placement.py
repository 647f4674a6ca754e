"""Where actors go: one bundle an actor, refused at once with the arithmetic if they do not fit."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlpost.errors import ResourceError
from rlpost.seats import Seat


def reserve(wanted: Sequence[Seat], timeout_s: float) -> PlacementGroup:
    """Reserve all bundles at once.

    Raises:
        ResourceError: the cluster is too small, or too busy within `timeout_s`.
    """
    for resource in ("CPU", "GPU"):
        _check_total(wanted, resource, ray.cluster_resources())
    group = placement_group([seat.bundle() for seat in wanted], strategy="PACK")
    if not group.wait(timeout_s):
        ray.util.remove_placement_group(group)
        raise ResourceError(
            f"the cluster could not place {len(wanted)} actors within "
            f"ray.placement_timeout_s={timeout_s:g}: {_sum(wanted, 'CPU')}; {_sum(wanted, 'GPU')}; "
            f"free now: {_free(ray.available_resources())}. Stop other jobs, or ask for less"
        )
    return group


def room(wanted: Sequence[Seat]) -> int:
    """Return how many times over these actors fit into what is free now, at least once."""
    free = ray.available_resources()
    needed = Counter[str]()
    for seat in wanted:
        needed.update(seat.bundle())
    # Several nodes may hold fewer than the sum of their free resources says: `reserve` then tells.
    return max(1, min(int(free.get(name, 0.0) / n + 1e-6) for name, n in needed.items()))


def strategy(group: PlacementGroup, index: int) -> PlacementGroupSchedulingStrategy:
    """Return the scheduling strategy that puts an actor into its bundle."""
    return PlacementGroupSchedulingStrategy(
        placement_group=group, placement_group_bundle_index=index
    )


def _check_total(wanted: Sequence[Seat], resource: str, total: Mapping[str, Any]) -> None:
    needed = sum(seat.bundle().get(resource, 0.0) for seat in wanted)
    there = float(total.get(resource, 0.0))
    if needed > there + 1e-6:
        raise ResourceError(
            f"the run needs {needed:g} {resource} and the cluster has {there:g}: "
            f"{_sum(wanted, resource)}. Ask for less with <role>.num_{resource.lower()}s or "
            "fewer workers, or give Ray more"
        )


def _sum(wanted: Sequence[Seat], resource: str) -> str:
    counts = Counter((seat.role, seat.bundle().get(resource, 0.0)) for seat in wanted)
    terms = [f"{count} {role} x {amount:g}" for (role, amount), count in counts.items() if amount]
    return f"{resource}: {' + '.join(terms) or 'none'}"


def _free(available: Mapping[str, Any]) -> str:
    return f"{available.get('CPU', 0):g} CPU, {available.get('GPU', 0):g} GPU"
