"""Compared runs side by side: each once, on as many casts as fit, all ended by the first failure.

The casts here are counters; real ones, one after another, are in tests/integration/test_loop.py.
"""

import asyncio
from contextlib import asynccontextmanager

import pytest

from actors import compare, placement
from actors.placement import room
from rlpost.config import load
from rlpost.errors import ActorError
from rlpost.placing.seats import Seat


@pytest.fixture
def configs(tmp_path):
    found = []
    for seed in range(5):
        config = load("quickstart", [f"seed={seed}"])
        config.run_dir = str(tmp_path / "clip" / f"seed{seed}")
        found.append(config)
    return found


class Theatre:
    """Stands where Ray would: counts casts and runs, and fails one where told to."""

    def __init__(self, monkeypatch, num_casts, failing=None):
        self.open = self.most = 0
        self.runs = []
        self.ended = []
        self.failing = failing
        monkeypatch.setattr(compare, "room", lambda _: num_casts)
        monkeypatch.setattr(compare, "running", self.running)
        monkeypatch.setattr(compare, "train_with", self.train_with)
        monkeypatch.setattr(compare, "Workshop", lambda _: None)

    @asynccontextmanager
    async def running(self, config, roles):
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            yield self
        finally:
            self.open -= 1

    async def train_with(self, cast, config, preparing, view):
        await preparing
        self.runs.append(config.seed)
        await asyncio.sleep(0.01)
        if config.seed == self.failing:
            raise ActorError("rollout-0 died")
        await asyncio.sleep(60.0 if self.failing is not None else 0.0)
        self.ended.append(config.seed)
        return [{"reward/mean": 0.0}]


@pytest.mark.parametrize(("num_casts", "most"), [(1, 1), (2, 2), (99, 5)])
def test_every_run_runs_once_on_as_many_casts_as_fit(monkeypatch, configs, num_casts, most):
    theatre = Theatre(monkeypatch, num_casts)
    asyncio.run(compare._train_all(configs))
    assert sorted(theatre.ended) == [0, 1, 2, 3, 4]
    assert (theatre.open, theatre.most) == (0, most)


def test_a_failure_ends_the_runs_beside_it(monkeypatch, configs):
    theatre = Theatre(monkeypatch, 2, failing=1)
    with pytest.raises(ActorError, match="rollout-0 died"):
        asyncio.run(asyncio.wait_for(compare._train_all(configs), 30.0))
    assert theatre.runs == [0, 1]
    assert (theatre.open, theatre.ended) == (0, [])


@pytest.mark.parametrize(
    ("free", "times"),
    [
        ({"CPU": 2.0, "GPU": 8.0}, 2),
        ({"CPU": 16.0, "GPU": 3.0}, 3),
        ({"CPU": 16.0}, 1),  # what does not fit once is refused with its arithmetic elsewhere
        ({"CPU": 1.8, "GPU": 8.0}, 2),
    ],
)
def test_room_is_what_the_scarcest_resource_leaves(monkeypatch, free, times):
    monkeypatch.setattr(placement.ray, "available_resources", lambda: free)
    learner = Seat(role="learner", index=0, num_cpus=0.6, num_gpus=1.0)
    reward = Seat(role="reward", index=0, num_cpus=0.3, num_gpus=0.0)
    assert room([learner, reward]) == times
