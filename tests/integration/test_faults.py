"""Actors are killed and frozen amid a real run: it goes on and loses nothing."""

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from actors import chaos
from actors.chaos import FILE, Striker
from actors.launch import running
from actors.training import train_with
from actors.workshop import Workshop
from rlpost.chaos import Fault, audit
from rlpost.cli import main
from rlpost.config import load
from rlpost.errors import ActorError
from rlpost.incidents import FILE as INCIDENTS
from rlpost.placing.seats import ROLES
from rlpost.reporting.console import Console

EVERY = ["checkpoint.every=1", "tracking.rollouts_every=1"]


def fault(step, phase, actor, kind, delay_s=0.0):
    return Fault(step=step, phase=phase, delay_s=delay_s, actor=actor, kind=kind)


async def train(config, faults):
    """Train while the faults strike; return each step's metrics."""
    async with running(config, ROLES) as cast:
        with Console(total_steps=config.steps, title="faults") as view:
            striker = Striker(view, cast, faults, config.run_dir)
            return await train_with(cast, config, asyncio.to_thread(Workshop, config), striker)


def told(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


MIXED = [
    fault(1, "rollout", "rollout-0", "kill"),
    fault(2, "rollout", "reward-0", "kill"),
    fault(3, "learn", "rollout-1", "freeze"),  # publication finds it so
    fault(4, "reference", "reference-0", "freeze"),
    fault(5, "publish", "rollout-0", "kill_engine"),
    fault(6, "learn", "reward-1", "stall"),
    fault(7, "learn", "reward-1", "kill"),
]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, short, cpus, ray_session):
    folder = tmp_path_factory.mktemp("mixed")
    words = [*short, *EVERY, "steps=8", "kl_coef=0.01", "rollout.num_workers=2", cpus]
    words += ["reward.num_workers=2", "rollout.num_cpus=0.5", f"run_dir={folder}"]
    words += ["supervision.heartbeat_s=0.5", "supervision.heartbeat_timeout_s=12"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chaos, "plan_faults", lambda *_: MIXED)
        assert main(["chaos", *words]) == 0
    return load("quickstart", words), folder, told(folder / "metrics.jsonl")


def test_a_run_whose_workers_are_killed_and_frozen_loses_nothing(mixed):
    config, folder, history = mixed
    claims = audit(config)
    assert len(claims) == 4
    assert all(claim.holds for claim in claims), claims
    assert len(told(folder / FILE)) == len(MIXED)
    assert max(one["mismatch/kl"] for one in history[1:]) < 1e-5  # every worker had the weights
    assert [one["weights/version"] for one in history] == list(range(9))


def test_every_lost_worker_is_named_with_its_cause_and_those_that_came_back(mixed):
    events = told(mixed[1] / INCIDENTS)
    causes = {one["actor"]: one["cause"] for one in events if one["event"] == "lost"}
    assert set(causes) >= {"rollout-0", "rollout-1", "reward-0", "reference-0"}
    assert "died during" in causes["reward-1"]  # when it had only paused it was not lost
    assert "no sign of life for supervision.heartbeat_timeout_s=12 s" in causes["rollout-1"]
    assert "no sign of life" in causes["reference-0"]
    stacks = Path(re.search(r"its stacks are in (\S+\.md)", causes["rollout-1"])[1]).read_text()
    assert "T (stopped)" in stacks
    assert "VLLM::EngineCore" in stacks
    killed = [one["cause"] for one in events if one["actor"] == "rollout-0" and "cause" in one]
    assert "died during" in killed[0]
    # Of an engine that dies amid a call, vLLM does not always tell whoever waits for the answer.
    assert "vLLM's engine died" in killed[-1] or "no sign of life" in killed[-1]
    assert {one["actor"] for one in events if one["event"] == "back"} >= {"reward-0", "reference-0"}


def test_fewer_workers_than_asked_for_show_in_the_metrics(mixed):
    counts = [one["workers/rollout"] for one in mixed[2][1:]]
    assert min(counts) < 2
    assert mixed[2][-1]["faults/lost"] >= 5


def test_a_killed_learner_goes_on_from_the_last_checkpoint_with_the_same_bits(
    run_dir, short, cpus, ray_session, tmp_path, metrics
):
    config = load("quickstart", [*short, *EVERY, cpus, f"run_dir={tmp_path}"])
    faults = [fault(2, "learn", "learner-0", "kill"), fault(3, "publish", "learner-0", "kill")]
    faults.append(fault(3, "learn", "rollout-0", "kill"))  # not back when the learner is
    asyncio.run(train(config, faults))
    assert all(claim.holds for claim in audit(config))
    undisturbed, disturbed = (
        [
            {k: v for k, v in line.items() if k.startswith(("reward/", "policy/", "eval/"))}
            for line in metrics(folder)
        ]
        for folder in (run_dir, tmp_path)
    )
    assert disturbed == undisturbed
    weights = [(run / "export" / "model.safetensors").read_bytes() for run in (run_dir, tmp_path)]
    assert weights[0] == weights[1]
    causes = [one["cause"] for one in told(tmp_path / INCIDENTS) if one["event"] == "lost"]
    assert sorted(cause.split()[0] for cause in causes) == ["learner-0", "learner-0", "rollout-0"]


def test_learner_ranks_that_die_before_they_have_trained_end_the_run(
    short, cpus, ray_session, tmp_path
):
    words = [*short, *EVERY, "warmstart.steps=0", cpus, f"run_dir={tmp_path}"]
    config = load("quickstart", [*words, "objective=custom", "objective.path=lethal:vanish"])
    config = replace(config, supervision=replace(config.supervision, attempts=2))
    in_vain = r"^2 groups of learner ranks in a row .*the last: learner-0 on node .* died during"
    with pytest.raises(ActorError, match=in_vain):
        asyncio.run(train(config, []))
    assert [one["actor"] for one in told(tmp_path / INCIDENTS)] == ["learner", "learner"]


def test_a_run_that_loses_more_than_it_may_stops_with_the_history(
    short, cpus, ray_session, tmp_path
):
    config = load("quickstart", [*short, cpus, f"run_dir={tmp_path}"])
    config = replace(config, supervision=replace(config.supervision, max_restarts=0))
    with pytest.raises(
        ActorError, match=r"supervision.max_restarts=0 may be: the run stops"
    ) as one:
        asyncio.run(train(config, [fault(1, "rollout", "reward-0", "kill")]))
    assert "reward-0 on node" in str(one.value)
