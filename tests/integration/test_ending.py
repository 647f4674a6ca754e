"""How runs end that do not end well: all processes gone, and a message that says who and why."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from actors.launch import running
from rlpost.batching import BatchPlan, Sample, build_batches
from rlpost.config import load
from rlpost.errors import LostError
from rlpost.learning import training_phase
from rlpost.models import prepare_model
from rlpost.types import Prompt, Trajectory

REPOSITORY = Path(__file__).parents[2]
RLPOST = Path(sys.executable).with_name("rlpost")
LIMIT_S = 600
ENDING_S = 15


def actors_of(process):
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "ray::RolloutWorker" in " ".join(child.cmdline())]


def raylets_of(process):
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "gcs_server" in child.name()]


@pytest.mark.parametrize(
    ("number", "moment", "said"),
    [
        (signal.SIGINT, raylets_of, "SIGINT: ending"),
        (signal.SIGTERM, actors_of, "SIGTERM: ending all actors"),
    ],
    ids=["while Ray starts", "while actors start"],
)
def test_a_signal_ends_everything(number, moment, said, tmp_path):
    with (tmp_path / "stderr.txt").open("w+") as errors:
        process = subprocess.Popen(
            [str(RLPOST), "train", "recipe=quickstart", f"run_dir={tmp_path}", "ray.num_cpus=2"],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
            stderr=errors,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + LIMIT_S
        while process.poll() is None and not moment(process):
            assert time.monotonic() < deadline, "the moment to send a signal did not come"
            time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
        if number == signal.SIGINT:  # Ctrl-C reaches every process of the terminal
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        code = process.wait(timeout=ENDING_S)
        errors.seek(0)
        printed = errors.read()
        assert said in printed
        assert "Traceback" not in printed
        assert code == 130
    assert not still_alive(children, 2)


def still_alive(processes, seconds):
    """Return who runs on after a while; a zombie has ended, and its parent may be none of ours."""
    left = psutil.wait_procs(processes, timeout=seconds)[1]
    return [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def trajectory():
    return Trajectory(
        prompt_ids=(30, 31),
        token_ids=(32, 33),
        loss_mask=(True, True),
        behavior_logprobs=(-5.0, -5.0),
        weight_versions=(0, 0),
        text="ab",
        finish_reason="stop",
    )


async def deaths(config, folder):
    """Kill one actor after another; return what each is told as, who is left, and how late."""
    told, answers = {}, {}
    prepare_model(config, folder)
    plan = BatchPlan(
        num_minibatches=1,
        num_ranks=2,
        micro_batch_size=4,
        reduction="sequence_mean",
        max_response_tokens=4,
    )
    prompt = Prompt(id="p", text="", token_ids=(30, 31), answer="ab")
    samples = [Sample(trajectory=trajectory(), advantage=1.0, ref_logprobs=(-5.0, -5.0))] * 4
    async with running(config, ("learner", "reference", "reward")) as cast:
        reference, rewards, learner = await asyncio.gather(
            cast.reference(folder), cast.rewards(), cast.learners()
        )
        await learner.load(folder, training_phase(config), LIMIT_S)
        calls = {
            "reference-0": lambda: reference.logprobs([trajectory()]),
            "reward-0": lambda: rewards.verify(prompt, [trajectory()]),
            "learner-1": lambda: learner.update(build_batches(samples, plan, 0), 1),
        }
        processes = {
            actor.name: psutil.Process(
                await actor.handle.__ray_call__.remote(lambda _: os.getpid())
            )
            for actor in cast.actors
        }
        for name, call in calls.items():
            first = await call()
            processes[name].kill()
            killed = time.monotonic()
            try:
                # The learner's other rank waits in a collective for its dead peer.
                answers[name] = (first, await call())
            except LostError as error:
                told[name] = str(error)
        events = (Path(config.run_dir) / "incidents.jsonl").read_text().splitlines()
        told |= {one["actor"]: one["cause"] for one in map(json.loads, events) if "cause" in one}
    left = still_alive(processes.values(), ENDING_S)
    return told, answers, left, time.monotonic() - killed


def test_a_killed_actor_is_named_with_its_node_and_cause(ray_session, cpus, tmp_path):
    overrides = ["learner.num_ranks=2", "learner.num_cpus=0.5", "kl_coef=0.01"]
    config = load("quickstart", [cpus, *overrides, f"run_dir={tmp_path}"])
    told, answers, left, seconds = asyncio.run(deaths(config, tmp_path / "model"))
    for name in ("reference-0", "reward-0", "learner-1"):
        assert re.match(rf"{name} on node [\d.]+ died during \w+: ", told[name])
        assert "exit" in told[name] or "killed" in told[name]
    assert set(answers) == {"reference-0", "reward-0"}  # their successors give the same answers
    assert all(before == after for before, after in answers.values())
    assert not left
    assert seconds < ENDING_S
