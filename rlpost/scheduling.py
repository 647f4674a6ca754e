"""Which of several alike workers gets the next request."""

import numpy as np

_AWAY = 2**40  # more than any worker will ever have in hand


class Loads:
    """The requests that each of several workers has in hand.

    Use: `index = loads.take()`, and `loads.give_back(index)` when that request has ended;
    `loads.leave(index)` and `loads.join(index)` as a worker goes and comes back.
    """

    def __init__(self, num_workers: int) -> None:
        self.num_present = num_workers
        self._loads = np.zeros(num_workers, dtype=np.int64)

    def take(self) -> int:
        """Return the worker with the fewest requests, the first of several, and count one more."""
        assert self.num_present, "every worker is away"
        index = int(self._loads.argmin())
        self._loads[index] += 1
        return index

    def give_back(self, index: int) -> None:
        """Count one request less, also of a worker that has left."""
        self._loads[index] -= 1

    def leave(self, index: int) -> None:
        """Give this worker nothing more, if it is present."""
        if not self.is_away(index):
            self._loads[index] += _AWAY
            self.num_present -= 1

    def join(self, index: int) -> None:
        """Give this worker requests, if it is away."""
        if self.is_away(index):
            self._loads[index] -= _AWAY
            self.num_present += 1

    def in_hand(self, index: int) -> int:
        """Return how many requests a worker has, also one that has left."""
        return int(self._loads[index]) % _AWAY

    def is_away(self, index: int) -> bool:
        """Whether this worker has left."""
        return bool(self._loads[index] >= _AWAY // 2)
