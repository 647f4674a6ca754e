"""A controller killed again and again trains on each prompt exactly once, as one never killed."""

import asyncio
import json
import random

import pytest
import torch
from test_staleness import Engine, Learner, Prompts, Record

from rlpost.config import load
from rlpost.controller import Controller, Parts
from rlpost.types import Prompt

STEPS = 60


class Remembering(Prompts):
    def recall(self, ids):
        return {i: Prompt(id=i, text="", token_ids=(1,), answer=i[1:]) for i in ids}

    def state_dict(self):
        return {"drawn": self.drawn}

    def load_state_dict(self, state):
        self.drawn = state["drawn"]


def recipe(*overrides):
    small = ["prompts_per_step=3", "group_size=2", "minibatches=1", "eval.every=0"]
    config = load("quickstart", [f"steps={STEPS}", *small, "old_logprobs=behavior", *overrides])
    torch.set_num_threads(1)
    return config


def run(config, *, kills, seed=0, **engine):
    """Run all steps; at each of `kills` forget what came after the last checkpoint."""
    record, asked, states = Record(), [], [(0, None, 0)]
    rng = random.Random(seed)

    async def life(last):
        fake = Engine(random.Random(rng.random()), **engine)
        parts = Parts(
            prompts=Remembering(),
            rollouts=fake,
            verifiers=fake,
            learner=Learner(fake),
            reference=None,
        )
        controller = Controller(config, parts, None, record)
        step, state, count = states[-1]
        del record.prompts[count:], record.values[step + 1 :]
        try:
            async with asyncio.timeout(120.0):
                if state is None:
                    await controller.start()
                else:
                    await controller.resume(json.loads(state))
                for number in range(step + 1, last + 1):
                    await controller.step(number)
                    if number % 4 == 0:
                        text = json.dumps(controller.state_dict())
                        states.append((number, text, len(record.prompts)))
        finally:
            asked.extend(fake.asked)
            await controller.close()

    for last in [*kills, STEPS]:
        asyncio.run(life(last))
    return record, asked


MODES = {
    "sync": [],
    "sync, replacements": ["max_replacements=2"],
    "async": ["mode=async", "max_staleness=2"],
    "async, replacements": ["mode=async", "max_staleness=2", "max_replacements=2"],
    "oversampling": ["mode=async", "max_staleness=2", "oversampling=2.5"],
}


@pytest.mark.parametrize("mode", MODES)
def test_each_prompt_is_trained_on_once_however_often_the_run_is_killed(mode):
    config = recipe(*MODES[mode])
    kills = sorted(random.Random(mode).sample(range(2, STEPS), 12))
    silent = 5 if "replacements" in mode else 0
    record, asked = run(config, kills=kills, silent=silent, slow=7)
    bound = config.staleness_bound
    assert max(values["staleness/max"] for values in record.values[1:]) <= bound
    assert len(record.values) == STEPS + 1
    assert len(record.prompts) == len(set(record.prompts)) == 3 * STEPS
    straight, once = run(config, kills=[], silent=silent, slow=7)
    if "replacements" not in mode:
        assert sorted(record.prompts) == sorted(straight.prompts) == list(range(3 * STEPS))
    if mode.startswith("sync"):
        assert record.prompts == straight.prompts
    # What is asked for again, is asked for with the seed that it had.
    if "oversampling" not in mode and "replacements" not in mode:
        assert set(asked) == set(once)
    assert len(asked) > len(once)


def test_what_had_ended_is_kept_and_not_sampled_again():
    config = recipe("mode=async", "max_staleness=2", "max_replacements=3")
    fake = Engine(random.Random(1), delayed=False, silent=2)

    def controller(engine):
        parts = Parts(
            prompts=Remembering(),
            rollouts=engine,
            verifiers=engine,
            learner=Learner(engine),
            reference=None,
        )
        return Controller(config, parts, None, Record())

    async def story():
        first = controller(fake)
        await first.start()
        await first.step(1)
        await first.buffer.settle()
        state = json.loads(json.dumps(first.state_dict()))
        held = [slot.task.result() for slot in first.buffer.slots]
        assert state["buffer"]["replaced"]
        assert state["buffer"]["replacements"]
        assert len({slot["version"] for slot in state["buffer"]["slots"]}) == 2
        await first.close()
        again = Engine(random.Random(1), delayed=False)
        second = controller(again)
        await second.resume(state)
        assert not again.asked
        assert json.loads(json.dumps(second.buffer.state_dict())) == state["buffer"]
        assert [slot.task.result() for slot in second.buffer.slots] == held
        assert len(held) == 9
        await second.close()

    asyncio.run(story())
