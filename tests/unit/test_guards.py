"""Each guard, triggered in a real controller on engines that misbehave in just its way.

What a learner rank refuses is in tests/integration/test_learner.py.
"""

import asyncio
import logging
import math
import random
import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from test_staleness import Engine, Learner, Prompts, Record

from rlpost.config import load
from rlpost.controller import Controller, Parts
from rlpost.errors import GuardError
from rlpost.guards import GUARDS, Guards, overlap
from rlpost.guards.journal import Journal
from rlpost.types import Verdict


class Scored(Engine):
    """Gives step n's responses the rewards `rewards(n)`, in turn."""

    rewards = staticmethod(lambda step: [0.0, 1.0])

    async def verify(self, prompt, trajectories):
        given = self.rewards(self.version + 1)
        return [Verdict(reward=given[i % len(given)]) for i, _ in enumerate(trajectories)]


class Telling(Learner):
    """Reports the metrics `said(n)` of step n."""

    said = staticmethod(lambda step: {})

    async def update(self, batches, step):
        metrics = await super().update(batches, step)
        for name, value in ({"policy/entropy": 1.0} | self.said(step)).items():
            metrics.mean(name, value, 1.0)
        return metrics


async def no_memory():
    return {}


def run(steps, *overrides, rewards=None, said=None, memory=no_memory, engine=Scored):
    """Run the controller; return each step's metrics and the guards."""
    fake = engine(random.Random(0), delayed=False)
    learner, record = Telling(fake), Record()
    if rewards:
        fake.rewards = rewards
    if said:
        learner.said = said
    small = ["prompts_per_step=8", "group_size=8", "minibatches=1", "eval.every=0"]
    config = load("quickstart", [f"steps={steps}", *small, *overrides])
    parts = Parts(prompts=Prompts(), rollouts=fake, verifiers=fake, learner=learner, reference=None)

    async def story():
        controller = Controller(config, parts, None, record, vitals=memory)
        try:
            await controller.start()
            for step in range(1, steps + 1):
                await controller.step(step)
            return controller.guards
        finally:
            await controller.close()

    return record.values, asyncio.run(story())


def told(caplog, name):
    return [r.message for r in caplog.records if f"guard {name}: " in r.message]


@pytest.mark.parametrize("count", [0, 7, 9])
def test_verdicts_that_are_not_one_a_response_stop_the_run(count):
    class Miscounting(Engine):
        async def verify(self, prompt, trajectories):
            return [Verdict(reward=1.0)] * count

    said = rf"guard rewards: prompt p0: .* returned {count} verdicts for 8 .* task\.verifier"
    with pytest.raises(GuardError, match=said):
        run(1, engine=Miscounting)


@pytest.mark.parametrize("wrong", [{"reward": float("nan")}, {"parts": {"style": float("inf")}}])
def test_a_reward_that_is_no_number_stops_the_run(wrong):
    class Dividing(Engine):
        async def verify(self, prompt, trajectories):
            return [Verdict(**({"reward": 1.0} | wrong)) for _ in trajectories]

    with pytest.raises(GuardError, match=r"prompt p0, response 0: (reward is nan|style is inf)"):
        run(1, engine=Dividing)


CASES = {
    "first_ratio": (
        ["guards.first_ratio=warn"],
        {"said": lambda step: {"policy/first_ratio_gap": 0.02 if step == 3 else 1e-6}},
        r"step 3: .*differ from 1 by 0\.02 .*guards\.max_first_ratio_gap=0\.01 .*dropout",
    ),
    "logprob_gap": (
        ["guards.logprob_gap=warn"],
        {"said": lambda step: {"mismatch/logprob_gap_mean": 0.01 if step == 3 else 1e-6}},
        r"step 3: .*differ by 0\.01 a token.*guards\.max_logprob_gap=0\.001.*model\.dtype",
    ),
    "logprob_drift": (
        ["mode=async", "old_logprobs=behavior", "guards.window=10"],
        {"said": lambda step: {"staleness/logprob_gap_mean": 0.01 * 1.3**step}},
        r"rose from .* in the steps before to .*guards\.max_logprob_drift=3 .*max_staleness",
    ),
    "constant_verifier": (
        [],
        {"rewards": lambda step: [0.5]},
        r"step 5: .*in all 5 steps every response got the same reward 0\.5: .*rollouts/",
    ),
    "no_signal": (
        [],
        {"rewards": lambda step: [0.0, 1.0] if step < 4 else [1.0]},
        r"step 8: .*in 5 steps in a row \(guards\.steps\).*\(reward/mean 1\): .*group_size",
    ),
    "reward_collapse": (
        [],
        {"rewards": lambda step: [0, 1, 1, 1] if step < 6 else [0] * 7 + [1]},
        r"last 5 steps is .* and was 0\.75: .*guards\.min_reward_frac=0\.25 .*learning_rate",
    ),
    "entropy_collapse": (
        [],
        {"said": lambda step: {"policy/entropy": 0.5**step}},
        r"below guards\.min_entropy=0\.01 nats .* mean reward of 0\.5: .*temperature",
    ),
    "memory_growth": (
        ["guards.window=8"],
        {"memory": "leaking"},
        r"grew through the last 8 steps .*reward-0 by 102 MiB a step.*max_memory_growth_mib=20",
    ),
    "low_disk": (
        ["guards.min_free_gib=1e9", "guards.low_disk=warn"],
        {},
        r"step 1: .*GiB are free on the disk of run_dir=runs/.*guards\.min_free_gib.*resume",
    ),
    "biased_sampling": (
        ["sampling.top_p=0.9", "sampling.allow_biased=true"],
        {},
        r"sampling\.top_p=0\.9 and sampling\.top_k=0 .*use top_p=1 and top_k=0",
    ),
}


def leaking():
    size = {"memory/driver_gib": 0.5, "memory/reward-0_gib": 0.5}

    async def memory():
        size["memory/reward-0_gib"] += 0.1
        return dict(size)

    return memory


@pytest.mark.parametrize("name", CASES)
def test_a_guard_warns_once_with_its_remedy_and_counts(name, caplog):
    overrides, behaviour, said = CASES[name]
    behaviour = {k: leaking() if v == "leaking" else v for k, v in behaviour.items()}
    values, guards = run(14, *overrides, **behaviour)
    warnings = told(caplog, name)
    assert len(warnings) == 1, warnings
    assert re.search(said, warnings[0]), warnings[0]
    assert values[-1][f"guards/{name}"] >= 1
    firing = {key for key in values[-1] if key.startswith("guards/")}
    assert firing == {f"guards/{name}"}  # and no other
    guards.enforce()


def test_cut_off_responses_are_told(caplog):
    class Long(Scored):
        async def generate(self, prompt, group_size, sampling):
            group = await super().generate(prompt, group_size, sampling)
            cut = [replace(t, finish_reason="length") for t in group.trajectories]
            return replace(group, trajectories=tuple(cut))

    values, _ = run(7, engine=Long)
    said = "100% of the responses are cut off at sampling.max_response_tokens=4"
    assert said in told(caplog, "truncation")[0]
    assert [line.get("guards/truncation") for line in values[4:]] == [None, 1, 2, 3]


def test_a_drift_too_slow_for_a_window_is_seen_against_the_first_steps(caplog):
    gaps = lambda step: {"staleness/logprob_gap_mean": 0.01 * 1.06**step}  # noqa: E731
    run(40, "mode=async", "old_logprobs=behavior", "guards.window=10", said=gaps)
    [warning] = told(caplog, "logprob_drift")
    assert re.search(r"step 24: .* rose from 0\.0119 in the first steps to 0\.036 ", warning)


def test_a_gap_that_is_no_number_is_told(caplog):
    gaps = lambda step: {"mismatch/logprob_gap_mean": math.nan if step == 3 else 1e-6}  # noqa: E731
    run(4, "guards.logprob_gap=none", said=gaps)
    assert "mismatch/logprob_gap_mean is nan" in told(caplog, "logprob_drift")[0]


def test_rewards_that_are_no_numbers_break_no_guard(caplog):
    """As a journal may hold that an older run has left; what follows is judged by itself."""
    guards = Guards(load("quickstart"))
    for step in range(1, 8):
        guards.look(step, {"reward/mean": math.nan, "reward/std": math.nan})
    for step in range(8, 16):
        mean = 0.75 if step == 8 else 0.01
        guards.look(step, {"reward/mean": mean, "reward/std": 0.4, "policy/entropy": 1.0})
    assert told(caplog, "reward_collapse")[0].startswith("step 12: ")


def test_a_guard_warns_again_after_it_had_fallen_silent(caplog):
    caplog.set_level(logging.INFO)
    gaps = lambda step: {"mismatch/logprob_gap_mean": 0.01 if step % 4 < 2 else 0.0}  # noqa: E731
    values, _ = run(9, "guards.logprob_gap=warn", said=gaps)
    assert [m.split(":")[0] for m in told(caplog, "logprob_gap")] == ["step 1", "step 4", "step 8"]
    assert caplog.text.count("guard logprob_gap sees nothing any more") == 2
    assert values[-1]["guards/logprob_gap"] == 5


def test_a_guard_set_to_stop_ends_the_run_after_its_step_is_recorded():
    said = r"step 5: guard constant_verifier: .*guards\.constant_verifier=stop stops the run"
    with pytest.raises(GuardError, match=said):
        run(20, "guards.constant_verifier=stop", rewards=lambda step: [0.0])
    values, _ = run(20, "guards.constant_verifier=none", rewards=lambda step: [0.0])
    assert not [name for name in values[-1] if name.startswith("guards/")]


def test_a_full_disk_asks_for_a_checkpoint_first():
    values, guards = run(2, "guards.min_free_gib=1e9")
    assert "guards.low_disk=checkpoint stops it after a checkpoint" in str(guards.ending)
    assert values[-1]["guards/low_disk"] == 2
    guards.enforce()  # the run goes on until the checkpoint is written


def test_the_disk_of_checkpoints_elsewhere_is_watched_too(tmp_path):
    """The newest checkpoint is larger than any disk, in a file that takes no room."""
    with TemporaryDirectory(dir="/dev/shm") as elsewhere:
        assert Path(elsewhere).stat().st_dev != tmp_path.stat().st_dev
        Path(elsewhere, "step_000001").mkdir()
        with Path(elsewhere, "step_000001", "weights").open("wb") as file:
            file.truncate(2**50)
        url = f"checkpoint.url=file://{elsewhere}"
        values, guards = run(1, f"run_dir={tmp_path}", "guards.min_free_gib=0", url)
    assert f"on the disk of checkpoint.url=file://{elsewhere}, less than" in str(guards.ending)
    assert values[-1]["disk/checkpoint_free_gib"] != values[-1]["disk/free_gib"]


def test_a_run_that_goes_well_fires_nothing(caplog):
    """As the quick start: from few right answers to all of them, ever surer."""
    right = lambda step: [1.0 if i < step else 0.0 for i in range(8)]  # noqa: E731
    said = lambda step: {"policy/entropy": 2.0 * 0.6**step, "mismatch/logprob_gap_mean": 1e-7}  # noqa: E731
    values, _ = run(11, "guards.window=8", rewards=right, said=said, memory=steady())
    assert values[-1]["reward/mean"] == 1.0
    assert not [name for line in values for name in line if name.startswith("guards/")]


def steady():
    sizes = iter([0.5, 0.9, 1.2, 1.25, *[1.26, 1.25] * 99])

    async def memory():
        return {"memory/learner-0_gib": next(sizes)}

    return memory


@pytest.mark.parametrize("rate", [0.005, 0.05, 0.2, 0.8])
def test_chance_alone_is_no_collapse(rate):
    """Fifty runs of 200 steps whose success rate never changes."""
    config = load("quickstart", ["prompts_per_step=8", "group_size=8"])
    look = GUARDS["reward_collapse"]
    rng = random.Random(rate)
    fired = 0
    for _ in range(50):
        journal = Journal(window=40)
        for _ in range(200):
            p = sum(rng.random() < rate for _ in range(64)) / 64
            journal.add({"reward/mean": p, "reward/std": (p * (1 - p)) ** 0.5})
            fired += look(journal, config) is not None
    assert fired == 0


def test_a_resumed_run_remembers_what_was_seen():
    config = load("quickstart")
    guards = Guards(config)
    line = {"step": 1, "reward/mean": 1.0, "reward/std": 0.0, "guards/truncation": 3.0}
    guards.remember([{**line, "policy/loss": None}] * 4)
    seen = guards.look(5, {"reward/mean": 1.0, "reward/std": 0.0})
    assert seen["guards/constant_verifier"] == 1
    assert seen["guards/truncation"] == 3


def test_every_guard_has_its_field_in_the_recipe():
    config = load("quickstart")
    assert all(hasattr(config.guards, name) for name in GUARDS)


def test_evaluation_prompts_that_are_trained_on_are_counted_and_shown():
    said = overlap(["2 + 2 =", "Two  plus TWO", "5 + 5 ="], ["two plus two", "5 + 5 =", "1 + 1"])
    assert said.startswith("2 of 3 evaluation prompts are trained on too, as 'Two  plus TWO'; '5 +")
    assert "data.eval_split" in said
    assert overlap(["2 + 2 ="], ["2+2="]) is None
