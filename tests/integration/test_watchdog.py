"""Real actors that stop in a real run: who, where, and what then."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray

from actors.launch import running
from actors.training import train_with
from actors.watching import watched
from actors.witnesses import look_from
from actors.workshop import Workshop
from rlpost.choices import OnStall
from rlpost.config import load
from rlpost.errors import StallError
from rlpost.placing.seats import ROLES
from rlpost.stalls import processes
from rlpost.types import Prompt, Sampling, Trajectory

AFTER_S = 5.0
PROMPT = Prompt(id="p", text="", token_ids=(30, 31), answer="a")
BLOCKED = """
import asyncio, sys, time
from types import SimpleNamespace

from actors import watching
from rlpost.config import load
from rlpost.stalls.progress import Progress

watching._NOTICE_S = 0.5


async def block_the_loop():
    none = {"actors": [], "present": list, "state": str, "restart": None}
    cast = SimpleNamespace(progress=Progress(), witnesses={}, **none)
    config = load("quickstart", sys.argv[1:])
    async with watching.watched(cast, config, SimpleNamespace(message=print)):
        time.sleep(3600)


asyncio.run(block_the_loop())
"""


class Saboteur:
    """A view that stops a process, once step 1 is shown, and lets it go on when that is told."""

    def __init__(self):
        self.pid = 0
        self.stopped = 0
        self.said = []

    def stop(self, pid):
        self.stopped = pid
        os.kill(pid, signal.SIGSTOP)

    def phase(self, name):
        pass

    def step(self, step, values):
        if step == 1:
            self.stop(self.pid)

    def message(self, text):
        self.said.append(text)
        if self.stopped and "is T (stopped)" in text:
            os.kill(self.stopped, signal.SIGCONT)
            self.stopped = 0


async def pid_of(actor):
    return await actor.call("__ray_call__", lambda _: os.getpid(), timeout_s=600)


def named(cast, name):
    return next(actor for actor in cast.actors if actor.name == name)


def engine_of(pid):
    """Return the process in which a worker's vLLM samples."""
    children = psutil.Process(pid).children()
    [engine] = [child for child in children if "EngineCore" in " ".join(child.cmdline())]
    return engine.pid


async def story(config, view, without_ptrace):
    """Train with a worker that stops; then stop more, under each action."""
    async with running(config, ROLES) as cast:
        worker = named(cast, "rollout-0")
        view.pid = await pid_of(worker)
        await train_with(cast, config, asyncio.to_thread(Workshop, config), view)
        config.watchdog.after_s = 1.0
        without_ptrace()
        await sample(cast, config, view)
        error = await ended(cast, config, view, worker)
        reward = named(cast, "reward-0")
        elsewhere = look_from(reward.node_id, {"reward-0": await pid_of(reward)})
        seen = await asyncio.to_thread(ray.get, elsewhere)
        await verify(cast, config, view, reward)
        return error, seen, reward.life


async def sample(cast, config, view):
    """Sample from an engine that stops."""
    pool = await cast.rollouts(Path(config.run_dir))
    async with watched(cast, config, view):
        view.stop(engine_of(view.pid))
        await pool.generate(PROMPT, 2, Sampling(max_response_tokens=4))


async def ended(cast, config, view, worker):
    """Return the error of a run that waits for a stopped worker and is to stop then."""
    config.watchdog.action = OnStall.stop
    os.kill(view.pid, signal.SIGSTOP)
    with pytest.raises(StallError) as caught:
        async with watched(cast, config, view):
            await worker.call("weight_version", timeout_s=600)
    os.kill(view.pid, signal.SIGCONT)
    return str(caught.value)


async def verify(cast, config, view, reward):
    """Verify with a worker that stops and is restarted."""
    config.watchdog.action = OnStall.restart
    response = Trajectory(
        prompt_ids=PROMPT.token_ids,
        token_ids=(32,),
        loss_mask=(True,),
        behavior_logprobs=(-1.0,),
        weight_versions=(3,),
        text="a",
        finish_reason="stop",
    )
    pool = await cast.rewards()
    os.kill(await pid_of(reward), signal.SIGSTOP)
    async with watched(cast, config, view):
        [verdict] = await pool.verify(PROMPT, [response])
    assert verdict.status == "ok"


def test_what_stops_is_found_and_the_run_goes_on_or_ends_as_asked(
    ray_session, cpus, short, metrics, tmp_path, monkeypatch
):
    overrides = [*short, cpus, f"run_dir={tmp_path}", f"watchdog.after_s={AFTER_S}"]
    overrides += ["eval.every=0", "checkpoint.export_at_end=false", "warmstart.steps=1"]
    overrides += ["supervision.heartbeat_s=3600"]  # or one that is silent would be killed
    config = load("quickstart", overrides)
    view = Saboteur()
    error, elsewhere, life = asyncio.run(
        story(config, view, lambda: monkeypatch.setattr(processes, "py_spy", lambda: None))
    )
    assert [line["step"] for line in metrics(tmp_path)] == [0, 1, 2, 3]
    paths = sorted((tmp_path / "stalls").glob("stall_*.md"))
    texts = [text for path in paths if "is T (stopped)" in (text := path.read_text())]
    in_training, in_engine, in_vain, in_reward = texts

    assert "Step 2, phase rollout" in in_training
    assert f"rollout-0 (process {view.pid}) is T (stopped): a signal" in in_training
    assert "| rollout-0 | generate | 8 |" in in_training
    assert "| 2 | 0 | 8 | 8 at 1 |" in in_training
    parts = dict(part.split("\n", 1) for part in in_training.split("\n## ")[1:])
    assert "| rollout-0 | no answer within 3 s |" in parts["Queues of the actors"]
    assert "0 of 1 verifier processes at work" in parts["Queues of the actors"]
    assert "Nothing is pending or lost" in parts["Ray"]
    assert "_episode (" in parts["Driver"]
    for place in ("main_loop", "run_busy_loop", "rlpost/tasks/verify_process.py"):
        assert place in parts["Processes"]
    assert any("the run goes on after" in line for line in view.said)

    # Without ptrace all write their stacks themselves, but for the one that cannot.
    assert "most recent call first" not in in_training
    assert "_sample (" in in_engine.split("**rollout-0**, its tasks")[1]
    learner, rollout, engine, reward, verifier = in_engine.split("\n## Processes")[1].split(
        ", process "
    )[1:6]
    assert "cannot answer a signal" in engine
    for other in (learner, rollout, reward, verifier):
        assert "most recent call first" in other

    assert error.startswith("nothing has advanced for ")
    assert "watchdog.action=stop ended the run" in error
    assert "waiting for rollout-0: weight_version" in in_vain
    assert [sight.name for sight in elsewhere] == ["reward-0", "reward-0"]
    assert "verify_process" in elsewhere[1].stack

    assert "waiting for reward-0: verify since" in in_reward
    assert life == 2
    events = (tmp_path / "incidents.jsonl").read_text()
    assert '"event": "lost", "actor": "reward-0"' in events


def test_a_driver_that_takes_no_note_is_killed_if_it_is_to_stop(tmp_path, environment):
    settings = ["watchdog.after_s=0.5", "watchdog.action=stop", f"run_dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *settings],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "the driver takes no note of it: killing the run" in done.stderr
    report = (tmp_path / "stalls" / "stall_1.md").read_text()
    assert "block_the_loop (" in report.split("Thread MainThread")[1]
