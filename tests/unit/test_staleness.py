"""The controller on engines that answer after random delays: order, ages, drops, errors.

The engines here only keep time and versions; real ones, with weights that change under responses,
are in tests/integration.
"""

import asyncio
import random
from dataclasses import dataclass, field

import pytest
import torch

from rlpost.buffer import BufferPlan, EpisodeBuffer
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
    silent: int = 0  # one prompt in so many gets the same reward for every response
    slow: int = 0  # one in so many takes as long as several steps
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
            for _ in range(60 if self.slow and int(prompt.answer) % self.slow == 0 else 0):
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
        if self.silent and int(prompt.answer) % self.silent == 0:
            return [Verdict(reward=1.0) for _ in trajectories]
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
        self.values, self.prompts, self.reasons = [], [], {}

    def phase(self, name):
        pass

    def record(self, step, values, groups):
        self.values.append(values)
        for group in groups:
            number = int(group.prompt.answer)
            if dropped := [t.dropped for t in group.trajectories if t.dropped]:
                self.reasons[number] = dropped[0]
            if group.trained:
                self.prompts.append(number)


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
                    assert controller.buffer.num_waiting <= 3 * (config.staleness_bound + 1)
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
    assert record.prompts == list(range(3000))  # each once, in order
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


@pytest.mark.parametrize(("bound", "factor"), [(1, 4 / 3), (1, 2), (3, 2), (2, 3)])
def test_with_oversampling_the_first_complete_win_and_the_rest_go_on(bound, factor):
    engine, _, record = run(
        300, "mode=async", f"max_staleness={bound}", f"oversampling={factor}", slow=10
    )
    assert sorted(record.prompts) == list(range(900))  # each once
    assert record.prompts != sorted(record.prompts)
    assert max(values["staleness/max"] for values in record.values[1:]) == bound
    assert engine.most_in_flight <= round(3 * factor)
    assert record.left == 0


def test_a_straggler_holds_no_step_back_before_its_age_does():
    async def episode(prompt, step):
        await release.get(prompt.id, ready).wait()
        return prompt.id

    async def story():
        plan = BufferPlan(per_step=2, num_steps=9, max_staleness=2, oversampling=1.5)
        buffer = EpisodeBuffer(Prompts().draw, episode, plan)
        taken = []
        for version in range(2):
            buffer.begin(version)
            taken.append((await asyncio.wait_for(buffer.take(version + 1), 30.0))[0])
        buffer.begin(2)
        third = asyncio.ensure_future(buffer.take(3))
        await asyncio.wait([third], timeout=0.2)
        assert not third.done()  # p0 was begun at version 0: this is its last step
        release["p0"].set()
        taken.append((await asyncio.wait_for(third, 30.0))[0])
        await buffer.close()
        return taken

    ready = asyncio.Event()
    ready.set()
    release = {"p0": asyncio.Event()}
    assert asyncio.run(story()) == [["p1", "p2"], ["p3", "p4"], ["p0", "p5"]]


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("mode=async", "max_staleness=2"),
        ("mode=async", "max_staleness=2", "oversampling=2"),
    ],
)
def test_groups_without_signal_are_replaced_and_told(overrides):
    _, _, record = run(100, "max_replacements=99", *overrides, silent=3)
    assert sorted(record.prompts) == [n for n in range(450) if n % 3]
    assert {n: "no_signal" for n in range(450) if n % 3 == 0}.items() >= record.reasons.items()
    replaced = sum(values.get("group/replaced", 0.0) for values in record.values)
    assert replaced == len(record.reasons) >= 140
    assert max(v.get("group/zero_advantage_frac", 0.0) for v in record.values) == 0.0
    assert sum(v.get("dropped/no_signal", 0.0) for v in record.values) == 2 * replaced


def test_replacements_have_a_bound_after_which_silent_groups_stay():
    _, _, record = run(50, "max_replacements=2", silent=1)
    assert [values["group/replaced"] for values in record.values[1:]] == [2.0] * 50
    assert all(values["group/zero_advantage_frac"] == 1.0 for values in record.values[1:])
    assert (len(record.prompts), len(record.reasons)) == (150, 100)


def test_which_prompt_replaces_which_depends_on_nothing_but_rewards():
    _, _, one = run(60, "max_replacements=3", silent=2, seed=1)
    _, _, other = run(60, "max_replacements=3", silent=2, seed=2)
    assert one.prompts == other.prompts
    assert one.reasons == other.reasons


def test_a_group_of_one_is_enough_for_a_baseline_of_the_batch():
    _, _, record = run(5, "group_size=1", "advantage=reinforce_baseline")
    assert record.prompts == list(range(15))


@pytest.mark.parametrize("failing", ["p1", "p5"])
def test_a_failure_ends_the_run(failing):
    with pytest.raises(ActorError, match="rollout-0 died"):
        run(1000, "mode=async", "max_staleness=1", failing=failing)


def test_a_failure_of_a_later_step_is_told_while_an_earlier_one_is_awaited():
    async def episode(prompt, step):
        if step == 2:
            raise ActorError("rollout-0 died")
        await asyncio.sleep(3600.0)

    async def story():
        plan = BufferPlan(per_step=1, num_steps=9, max_staleness=1)
        buffer = EpisodeBuffer(Prompts().draw, episode, plan)
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
