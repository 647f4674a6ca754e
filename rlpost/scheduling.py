"""Which of several alike workers gets the next request."""

import numpy as np


class Loads:
    """The requests that each of several workers has in hand.

    Use: `index = loads.take()`, and `loads.give_back(index)` when that request has ended.
    """

    def __init__(self, num_workers: int) -> None:
        self._loads = np.zeros(num_workers, dtype=np.int64)

    def take(self) -> int:
        """Return the worker with the fewest requests, the first of several, and count one more."""
        index = int(self._loads.argmin())
        self._loads[index] += 1
        return index

    def give_back(self, index: int) -> None:
        """Count one request less."""
        self._loads[index] -= 1
