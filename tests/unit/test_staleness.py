"""The controller on engines that answer after random delays: order, ages, back-pressure, errors.

The engines here only keep time and versions; real ones, with weights that change under responses,
are in tests/integration.
"""

import asyncio
import random
from dataclasses import dataclass, field

import pytest
import torch

from rlpost.buffer import StepBuffer
from rlpost.config import load
from rlpost.controller import Controller, Parts
from rlpost.errors import ActorError, StalenessError
from rlpost.metrics import Metrics
from rlpost.types import Group, Prompt, Trajectory, Verdict


class Prompts:
    def __init__(self):
        self.drawn = 0

    def draw(self, count):
        numbers = range(self.drawn, self.drawn + count)
        self.drawn += count
        return [Prompt(id=f"p{n}", text="", token_ids=(1,), answer=str(n)) for n in numbers]


@dataclass
class Engine:
    """Samples three tokens, each with the weights of its moment; the learner sets the version."""

    rng: random.Random
    version: int = -1
    delayed: bool = True
    failing: str | None = None
    in_flight: int = 0
    most_in_flight: int = 0
    asked: list = field(default_factory=list)

    async def generate(self, prompt, group_size, sampling):
        self.asked.append((prompt.id, sampling.seed))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        versions = []
        for _ in range(3):
            versions.append(self.version)
            for _ in range(self.rng.randrange(4) if self.delayed else 0):
                await asyncio.sleep(0)
        if prompt.id == self.failing:
            raise ActorError("rollout-0 died")
        self.in_flight -= 1
        trajectory = Trajectory(
            prompt_ids=prompt.token_ids,
            token_ids=(2, 3, 4),
            loss_mask=(True,) * 3,
            behavior_logprobs=(-1.0,) * 3,
            weight_versions=tuple(versions),
            text=prompt.answer,
            finish_reason="stop",
            worker="rollout-0",
        )
        return Group(prompt=prompt, trajectories=(trajectory,) * group_size)

    async def weight_versions(self):
        return {"rollout-0": self.version}

    async def verify(self, prompt, trajectories):
        return [Verdict(reward=float(i)) for i, _ in enumerate(trajectories)]


class Learner:
    """Counts what it is given, and takes its time, too."""

    num_ranks = 1

    def __init__(self, engine):
        self.engine = engine
        self.fresh = []

    async def update(self, batches, step):
        micros = [micro for minibatch in batches[0].minibatches for micro in minibatch]
        self.fresh.append(sum(int(micro.fresh.sum()) for micro in micros))
        for _ in range(self.engine.rng.randrange(12) if self.engine.delayed else 0):
            await asyncio.sleep(0)
        metrics = Metrics()
        metrics.sum("tokens/trained", float(sum(int(m.loss_mask.sum()) for m in micros)))
        return metrics

    async def publish(self, version):
        if self.engine.delayed:
            await asyncio.sleep(0)
        self.engine.version = version
        return {}


class Record:
    def __init__(self):
        self.values, self.prompts = [], []

    def phase(self, name):
        pass

    def record(self, step, values, groups):
        self.values.append(values)
        self.prompts += [group.prompt.id for group in groups]


def run(steps, *overrides, seed=0, **engine):
    config = load(
        "quickstart",
        [
            f"steps={steps}",
            "prompts_per_step=3",
            "group_size=2",
            "minibatches=1",
            "eval.every=0",
            "old_logprobs=behavior",
            *overrides,
        ],
    )
    torch.set_num_threads(1)
    fake = Engine(random.Random(seed), **engine)
    learner, record, prompts = Learner(fake), Record(), Prompts()
    parts = Parts(prompts=prompts, rollouts=fake, verifiers=fake, learner=learner, reference=None)

    async def story():
        controller = Controller(config, parts, None, record)
        try:
            async with asyncio.timeout(120.0):
                await controller.start()
                for step in range(1, steps + 1):
                    await controller.step(step)
                    waiting = controller.buffer.num_waiting
                    assert waiting <= 3 * (config.staleness_bound + 1)
        finally:
            await controller.close()
            record.left = len(asyncio.all_tasks()) - 1

    asyncio.run(story())
    return fake, learner, record


@pytest.mark.parametrize("bound", [0, 1, 2, 5])
def test_no_token_is_older_than_the_bound_in_a_thousand_steps(bound):
    engine, learner, record = run(1000, "mode=async", f"max_staleness={bound}")
    ages = [values["staleness/max"] for values in record.values[1:]]
    assert max(ages) == bound  # the bound is used, and kept
    assert record.prompts == [f"p{n}" for n in range(3000)]  # each once, in order
    assert engine.most_in_flight <= 3 * (bound + 1)
    assert record.left == 0
    if bound:
        assert 0 < sum(learner.fresh) < 1000 * 18
        assert max(values["staleness/mixed_frac"] for values in record.values[1:]) > 0
        assert any(values.get("queue/ready_frac", 0) > 0 for values in record.values)
    else:
        assert learner.fresh == [18] * 1000


def test_a_bound_of_zero_asks_for_the_samples_of_sync():
    sync, _, one = run(40, seed=1)
    bounded, _, other = run(40, "mode=async", "max_staleness=0", seed=2)
    assert sync.asked == bounded.asked
    assert one.prompts == other.prompts
    stale, _, third = run(40, "mode=async", "max_staleness=2", seed=3)
    assert sorted(stale.asked) == sorted(sync.asked)
    assert third.prompts == one.prompts


def test_the_last_steps_begin_nothing_more():
    engine, _, _ = run(3, "mode=async", "max_staleness=50")
    assert len(engine.asked) == 9


@pytest.mark.parametrize("failing", ["p1", "p5"])
def test_a_failure_ends_the_run(failing):
    with pytest.raises(ActorError, match="rollout-0 died"):
        run(1000, "mode=async", "max_staleness=1", failing=failing)


def test_a_failure_of_a_later_step_is_told_while_an_earlier_one_is_awaited():
    async def episode(step):
        if step == 2:
            raise ActorError("rollout-0 died")
        await asyncio.sleep(3600.0)

    async def story():
        buffer = StepBuffer(lambda step: [episode(step)], num_steps=9, max_staleness=1)
        buffer.begin(0)
        try:
            async with asyncio.timeout(10.0):
                await buffer.take(1)
        finally:
            await buffer.close()
            assert len(asyncio.all_tasks()) == 1

    with pytest.raises(ActorError, match="rollout-0 died"):
        asyncio.run(story())


def test_a_worker_that_serves_old_weights_is_found_out(monkeypatch):
    generate = Engine.generate

    async def late(self, prompt, group_size, sampling):
        version, self.version = self.version, max(self.version - 2, 0)
        try:
            return await generate(self, prompt, group_size, sampling)
        finally:
            self.version = version

    monkeypatch.setattr(Engine, "generate", late)
    with pytest.raises(StalenessError, match=r"version 0 would be .* at version 2, and at most 1 "):
        run(9, "mode=async", "max_staleness=1", delayed=False)
