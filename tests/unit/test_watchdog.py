"""The watchdog over a real controller whose engine stops, and over a driver that does itself.

Real actors that are stopped are in tests/integration/test_watchdog.py.
"""

import asyncio
import ctypes
import random
import threading
import time

import pytest
from test_staleness import Engine, Learner, Prompts, Record

from rlpost.config import load
from rlpost.controller import Controller, Parts
from rlpost.errors import ConfigError
from rlpost.stalls import stacks, stall, watchdog
from rlpost.stalls.progress import Progress
from rlpost.stalls.watchdog import Watchdog

AFTER_S = 0.3
LIMIT_S = 60
HELD_UP = ("| 1 | 7 | 1 | 1 at 0 | p4 |", "| 2 | 7 | 1 | 1 at 1 | p12 |")


class Stopping(Engine):
    """Does not sample the prompts in `held` before it is told to."""

    def __init__(self):
        super().__init__(random.Random(0), delayed=False)
        self.progress = Progress()
        self.held = {"p4": asyncio.Event(), "p12": asyncio.Event()}

    async def generate(self, prompt, group_size, sampling):
        with self.progress.waiting("rollout-0", "generate", 660.0):
            if prompt.id in self.held:
                await self.held[prompt.id].wait()
            return await super().generate(prompt, group_size, sampling)


class Kennel:
    """A watchdog's reports and what it said and did."""

    def __init__(self, folder):
        self.folder = folder
        self.said, self.stalls = [], []

    def watch(self, progress, after_s=AFTER_S):
        return Watchdog(progress, self.folder, after_s, self.said.append, self.stalls.append)

    def reports(self):
        return sorted(self.folder.glob("stall_*.md"))

    def told(self, text):
        """Return the reports that hold a text, however often a slow machine stood still besides."""
        found = [path.read_text() for path in self.reports()]
        return [report for report in found if text in report]


@pytest.fixture
def kennel(tmp_path):
    return Kennel(tmp_path / "stalls")


def until(condition):
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.01)


def controller_of(engine):
    small = ["steps=2", "prompts_per_step=8", "group_size=2", "minibatches=1", "eval.every=0"]
    config = load("quickstart", small)
    learner = Learner(engine)
    parts = Parts(
        prompts=Prompts(), rollouts=engine, verifiers=engine, learner=learner, reference=None
    )
    progress = getattr(engine, "progress", None)
    return Controller(config, parts, None, Record(), progress=progress)


async def steps(controller, count):
    try:
        await controller.start()
        for step in range(1, count + 1):
            await controller.step(step)
    finally:
        await controller.close()


def test_each_stall_is_told_once_with_what_is_waited_for_and_the_run_goes_on(kennel):
    async def story():
        engine = Stopping()
        controller = controller_of(engine)
        loop = asyncio.get_running_loop()
        with kennel.watch(engine.progress) as dog:
            dog.witnesses["Driver"] = lambda: stall.driver(loop)
            dog.witnesses["Episodes"] = lambda: stall.queues(controller.buffer)
            running = asyncio.ensure_future(steps(controller, 2))
            for row, event in zip(HELD_UP, engine.held.values(), strict=True):
                await asyncio.to_thread(until, lambda row=row: kennel.told(row))
                await asyncio.sleep(AFTER_S)
                event.set()
            await running

    asyncio.run(story())
    [first], [second] = map(kennel.told, HELD_UP)  # and not again while nothing changes
    assert first.startswith("# Nothing has advanced for ")
    assert "Step 1, phase rollout" in first
    assert "waiting for rollout-0: generate since" in first
    assert "| rollout-0 | generate | 1 |" in first
    assert "generate (" in first.split("## Driver")[1].split("## Episodes")[0]
    assert "Step 2, phase rollout" in second
    assert ("rollout-0",) in [found.suspects for found in kennel.stalls]
    assert any("waiting for rollout-0: generate since" in line for line in kennel.said)
    assert any(str(kennel.reports()[0]) in line for line in kennel.said)
    assert any("raise watchdog.after_s=0.3" in line for line in kennel.said)


def test_a_driver_whose_event_loop_is_blocked_is_found(kennel):
    reported = threading.Event()

    class Blocking(Engine):
        async def verify(self, prompt, trajectories):
            self.wait_forever()
            return await super().verify(prompt, trajectories)

        def wait_forever(self):
            assert reported.wait(LIMIT_S)

    async def story():
        engine = Blocking(random.Random(0), delayed=False)
        engine.progress = Progress()
        loop = asyncio.get_running_loop()
        with kennel.watch(engine.progress) as dog:
            dog.act = lambda found: kennel.told("wait_forever (") and reported.set()
            dog.witnesses["Driver"] = lambda: stall.driver(loop)
            await steps(controller_of(engine), 1)

    asyncio.run(story())
    text = kennel.told("wait_forever (")[0]
    assert "wait_forever (" in text.split("Thread MainThread")[1]
    assert "no actor is waited for: the driver itself is at work, or stuck" in text


def test_a_driver_whose_interpreter_halts_leaves_its_stacks_and_nobody_is_blamed(kennel):
    def keep_the_interpreter():
        ctypes.PyDLL(None).usleep(int(3 * AFTER_S * 1e6))

    with kennel.watch(Progress()):
        time.sleep(AFTER_S / 2)
        keep_the_interpreter()
        until(lambda: kennel.said)
    assert "keep_the_interpreter" in (kennel.folder / "driver_halted.txt").read_text()
    assert "the driver itself stood still" in kennel.said[0]
    assert "driver_halted.txt" in kennel.said[0]


def test_witnesses_that_hang_or_fail_do_not_keep_the_report(kennel, monkeypatch):
    monkeypatch.setattr(watchdog, "_ANSWER_S", 0.2)
    over = threading.Event()

    def fail():
        raise OSError("no head to ask")

    with kennel.watch(Progress()) as dog:
        dog.witnesses |= {"Processes": over.wait, "Ray": fail}
        until(lambda: kennel.stalls)
    over.set()
    assert kennel.told("Processes: no answer within 0.2 s")
    assert "Ray: OSError: no head to ask" in kennel.stalls[0].summary


def test_a_report_hides_secrets_and_takes_the_next_number(kennel, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hush-a-token-of-mine")
    kennel.folder.mkdir()
    (kennel.folder / "stall_1.md").write_text("of an earlier part of the run")
    with kennel.watch(Progress()) as dog:
        dog.witnesses["Processes"] = lambda: stall.Section(text="run --key hush-a-token-of-mine")
        until(lambda: kennel.stalls)
    assert [path.name for path in kennel.reports()] == ["stall_1.md", "stall_2.md"]
    assert kennel.told("run --key ${oc.env:HF_TOKEN}")
    assert not kennel.told("hush")


def test_a_task_is_followed_through_what_it_awaits():
    async def told(event):
        await event.wait()
        yield 1

    async def listen(event):
        async for _ in told(event):
            pass

    async def story():
        event = asyncio.Event()
        listening = [asyncio.ensure_future(listen(event)) for _ in range(3)]
        await asyncio.sleep(0)
        text = stacks.tasks(asyncio.get_running_loop())
        event.set()
        await asyncio.gather(*listening)
        return text

    lines = asyncio.run(story()).splitlines()
    first = next(number for number, line in enumerate(lines) if line.endswith(" and 2 more"))
    places = [line.split("(")[0].strip() for line in lines[first + 1 : first + 4]]
    assert places == ["wait", "told", "listen"]


def test_a_quiet_watchdog_leaves_nothing(kennel):
    with kennel.watch(Progress(), after_s=3600):
        pass
    with kennel.watch(Progress(), after_s=0):
        pass
    assert not kennel.folder.exists()


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match=r"watchdog\.after_s must be 0 \(never\) or more, got -1"):
        load("quickstart", ["watchdog.after_s=-1"])
    with pytest.raises(ConfigError, match=r"watchdog\.action"):
        load("quickstart", ["watchdog.action=bark"])
