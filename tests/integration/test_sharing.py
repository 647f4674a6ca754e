"""Engines and learner ranks that take turns, on a real Ray with vLLM and DeepSpeed.

Not covered, for want of a GPU: CUDA IPC, and the memory that vLLM frees as it sleeps. Which GPUs an
engine is told is tested with GPUs that only Ray believes in.
"""

import asyncio
import json
import os
from pathlib import Path

import pytest
import ray

from actors import processes
from actors.chaos import Striker
from actors.launch import running
from actors.placement import reserve
from actors.training import train_with
from actors.workshop import Workshop
from rlpost.chaos import Fault
from rlpost.config import load
from rlpost.errors import LostError, ResourceError
from rlpost.incidents import FILE as INCIDENTS
from rlpost.placing.seats import ROLES, seats
from rlpost.reporting.console import Console

TWO = ["learner.num_ranks=2", "rollout.num_workers=2"]
CORES = 2
FAULTS = [
    Fault(step=2, phase="rollout", delay_s=0.0, actor="rollout-0", kind="kill"),
    Fault(step=3, phase="learn", delay_s=0.0, actor="rollout-1", kind="kill_engine"),
]


@pytest.fixture
def two_cores(ray_session):
    """Leave two of Ray's cores free."""
    held = ray.util.placement_group([{"CPU": ray.available_resources()["CPU"] - CORES}])
    assert held.wait(60)
    yield
    ray.util.remove_placement_group(held)


async def train(config):
    """Train while engines are killed, one that samples and one that sleeps, or is about to."""
    async with running(config, ROLES) as cast:
        with Console(total_steps=config.steps, title="sharing") as view:
            striker = Striker(view, cast, FAULTS, config.run_dir)
            await train_with(cast, config, asyncio.to_thread(Workshop, config), striker)


def test_engines_that_sleep_while_ranks_learn_on_their_cores_give_the_same_curve(
    two_cores, run_dir, short, cpus, metrics, tmp_path
):
    apart = load("quickstart", [*short, *TWO, cpus])
    with pytest.raises(ResourceError, match=r"could not place 5 actors.*2 learner x 0\.8 \+ 2 rol"):
        reserve(seats(apart, ROLES), timeout_s=1.0)

    words = [*short, *TWO, "layout=colocated", f"ray.num_cpus={CORES}", f"run_dir={tmp_path}"]
    asyncio.run(train(load("quickstart", words)))
    for one, other in zip(metrics(run_dir), metrics(tmp_path), strict=True):
        for name in (name for name in one if name.startswith(("policy/", "reward/", "eval/"))):
            assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name
    first, *later = metrics(tmp_path)[1:]
    assert first["sleep/engines"] == 2  # that said so themselves
    assert all(line["sleep/engines"] >= 1 for line in later)
    assert all(line["mismatch/logprob_gap_mean"] < 1e-5 for line in (first, *later))
    lines = (tmp_path / INCIDENTS).read_text().splitlines()
    events = [(event["event"], event["actor"]) for event in map(json.loads, lines)]
    assert {("lost", "rollout-0"), ("back", "rollout-0"), ("lost", "rollout-1")} <= set(events)


def in_their_places():
    """Return what stands for a learner rank, and for an engine: they know their GPUs.

    They are local, so that Ray copies them.
    """

    class Rank:
        def __init__(self, config, rank):
            pass

        def pulse(self):
            pass

        def gpus(self):
            return os.environ["CUDA_VISIBLE_DEVICES"].split(",")

    class Engine:
        def __init__(self, config, worker):
            self.told = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")

        async def start(self, folder, gpus=()):
            self.told = list(gpus) or self.told

        async def pulse(self):
            pass

        async def gpus(self):
            return self.told

        async def close(self):
            pass

    return Rank, Engine


def test_an_engine_is_told_the_gpus_of_its_ranks_and_so_is_its_successor(
    ray_session, cpus, tmp_path, monkeypatch
):
    for role, kind in zip(("learner", "rollout"), in_their_places(), strict=True):
        monkeypatch.setitem(processes.KINDS, role, kind)
    shape = ["layout=hybrid", *TWO, "rollout.tensor_parallel_size=2", "rollout.num_gpus=2"]
    words = [*shape, "learner.num_gpus=1", "ray.num_gpus=4", cpus, f"run_dir={tmp_path}"]

    async def look():
        async with running(load("quickstart", words), ("learner", "rollout")) as cast:
            crew = (await cast.rollouts(Path("nowhere"))).crew
            before = await gpus(cast)
            await cast.renew_learners(LostError("to see where they go"))
            arrived = asyncio.Event()

            async def arrive():
                arrived.set()

            crew.on_arrival, lost = arrive, crew.actors[0]
            crew.lose(lost, lost.life, "to see where its successor begins")
            async with asyncio.timeout(300):
                await arrived.wait()
            return before, await gpus(cast)

    for ranks, shared, own in asyncio.run(look()):
        assert sorted(ranks) == sorted(shared)
        assert sorted(shared + own) == ["0", "1", "2", "3"]


async def gpus(cast):
    """Return the GPUs of both ranks, of the engine that shares them, and of the other one."""
    found = [await actor.call("gpus", timeout_s=120) for actor in cast.actors]
    return found[0] + found[1], found[2], found[3]
