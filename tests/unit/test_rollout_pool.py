"""Which rollout workers a publication is to reach."""

from actors.crew import Crew
from actors.handles import RolloutPool


async def welcome():
    """Bring nothing."""


def test_a_new_learner_opens_its_ways_even_while_no_worker_is_there():
    pool = RolloutPool(Crew("rollout", [], None, 1.0, proves=True), 1.0)
    for _ in range(2):
        pool.follow(welcome)
        assert pool.changed_receivers() == []
        pool.published({})
        assert pool.changed_receivers() is None
