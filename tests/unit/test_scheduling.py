"""Who gets the next request while workers come and go."""

import pytest

from rlpost.scheduling import Loads


def test_a_worker_that_has_left_gets_nothing_and_keeps_its_count():
    loads = Loads(3)
    assert [loads.take() for _ in range(4)] == [0, 1, 2, 0]
    loads.leave(1)
    loads.leave(1)
    assert loads.num_present == 2
    assert loads.is_away(1)
    assert [loads.in_hand(index) for index in range(3)] == [2, 1, 1]
    assert [loads.take() for _ in range(3)] == [2, 0, 2]
    loads.give_back(1)  # what it had in hand went elsewhere
    loads.join(1)
    loads.join(1)
    assert loads.num_present == 3
    assert [loads.take() for _ in range(3)] == [1, 1, 1]


def test_nobody_is_taken_when_all_are_away():
    loads = Loads(1)
    loads.leave(0)
    with pytest.raises(AssertionError, match="every worker is away"):
        loads.take()
