"""Who goes where: sequences to ranks of equal cost, and to micro-batches of bounded size.

Numbers only; indices in, indices out.
"""

import heapq
from collections.abc import Sequence


def deal(costs: Sequence[float], num_shares: int) -> list[list[int]]:
    """Return indices in shares of nearly equal cost.

    The costliest goes first, each to the share that has least so far; that share's cost exceeds the
    best possible largest one by at most a third (Graham 1969, longest processing time first).
    """
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    loads = [(0.0, share) for share in range(num_shares)]
    for index in _longest_first(costs):
        load, share = heapq.heappop(loads)
        shares[share].append(index)
        heapq.heappush(loads, (load + costs[index], share))
    return shares


def fill_rows(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return indices in bins of at most `budget` tokens in all, by first fit, longest first.

    For sequences that share one row without padding. A sequence longer than that is a bin of its
    own.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for index in _longest_first(lengths):
        length = lengths[index]
        place = next((i for i, free in enumerate(room) if free >= length), None)
        if place is None:
            bins.append([index])
            room.append(budget - length)
        else:
            bins[place].append(index)
            room[place] -= length
    return bins


def fill_tables(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return indices in bins whose number times their longest length is at most `budget`.

    For sequences that are padded to the longest: neighbours in length share a bin. A sequence
    longer than that is a bin of its own.
    """
    bins: list[list[int]] = []
    for index in _longest_first(lengths):
        if bins and (len(bins[-1]) + 1) * lengths[bins[-1][0]] <= budget:
            bins[-1].append(index)
        else:
            bins.append([index])
    return bins


def split_to(bins: list[list[int]], count: int) -> list[list[int]]:
    """Return at least `count` bins where there are members enough: the fullest are halved."""
    bins = [list(members) for members in bins]
    while len(bins) < count:
        fullest = max(range(len(bins)), key=lambda i: len(bins[i]), default=None)
        if fullest is None or len(bins[fullest]) < 2:
            break
        members = bins[fullest]
        half = len(members) // 2
        bins[fullest : fullest + 1] = [members[:half], members[half:]]
    return bins


def _longest_first(lengths: Sequence[float]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])
