"""Which faults a plan holds, and what the audit finds in a run's files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rlpost.chaos import ChaosPlan, allowing, audit, plan_faults, read_words
from rlpost.config import load
from rlpost.errors import ConfigError
from rlpost.reporting.rollouts_log import write_rollouts
from rlpost.types import Group, Prompt, Trajectory


@pytest.fixture
def config(tmp_path):
    words = ["checkpoint.every=1", "kl_coef=0.1", "ray.num_cpus=8", f"run_dir={tmp_path}"]
    words += ["steps=4", "prompts_per_step=2", "group_size=2"]
    return load("quickstart", words)


def test_every_combination_of_role_kind_and_phase_comes_before_one_comes_again(config):
    config = replace(config, steps=200)
    faults = plan_faults(ChaosPlan(num_faults=64), config)
    combinations = [(f.actor.partition("-")[0], f.kind, f.phase) for f in faults]
    assert len(set(combinations[:32])) == 32  # 4 roles x 2 kinds x 4 phases
    assert sorted(combinations[:32]) == sorted(combinations[32:])
    steps = [fault.step for fault in faults]
    assert steps == sorted(set(steps))
    assert steps[0] == 1
    assert steps[-1] <= 200


def test_the_same_seed_plans_the_same_faults(config):
    plan = ChaosPlan(num_faults=4, seed=7)
    assert plan_faults(plan, config) == plan_faults(plan, config)
    assert plan_faults(plan, config) != plan_faults(replace(plan, seed=8), config)


def test_engines_are_struck_in_rollout_workers_alone(config):
    faults = plan_faults(ChaosPlan(num_faults=4, kinds=("kill_engine",)), config)
    assert {fault.actor for fault in faults} == {"rollout-0"}


def test_the_run_may_lose_what_the_plan_makes_it_lose(config):
    assert allowing(ChaosPlan(num_faults=30), config).supervision.max_restarts == 90


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("chaos.num_fault=3", "unknown field chaos.num_fault; available: num_faults, seed"),
        ("chaos.num_faults=few", "chaos.num_faults=few: expected a whole number"),
        ("chaos.kinds=kill,maim", "expected some of kill, freeze"),
        ("chaos.roles=driver", "expected some of rollout, reward, reference, learner"),
    ],
)
def test_a_word_that_means_nothing_is_refused(word, said):
    with pytest.raises(ConfigError, match=said):
        read_words([word])


def test_a_plan_that_cannot_be_survived_is_refused(config):
    with pytest.raises(ConfigError, match="at most steps=4"):
        plan_faults(ChaosPlan(num_faults=5), config)
    nothing_kept = replace(config, checkpoint=replace(config.checkpoint, every=0))
    with pytest.raises(ConfigError, match=r"checkpoint.every=0 writes none"):
        plan_faults(ChaosPlan(num_faults=1), nothing_kept)
    plan_faults(ChaosPlan(num_faults=1, roles=("rollout",)), nothing_kept)


def group(prompt, version, size=2):
    trajectory = Trajectory(
        prompt_ids=(1,),
        token_ids=(2, 3),
        loss_mask=(True, True),
        behavior_logprobs=(-1.0, -1.0),
        weight_versions=(version, version),
        text="",
        finish_reason="stop",
        reward=0.0,
    )
    prompt = Prompt(id=prompt, text="", token_ids=(1,))
    return Group(prompt=prompt, trajectories=(trajectory,) * size)


def write_run(config, steps, spoil=None):
    """Write a run's files; `spoil(step, groups)` returns what a step has instead."""
    folder = Path(config.run_dir)
    lines = [json.dumps({"step": step}) for step in steps]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    for step in range(1, config.steps + 1):
        groups = [group(f"p{2 * step + i}", step - 1) for i in range(2)]
        write_rollouts(folder / "rollouts", step, spoil(step, groups) if spoil else groups)


def broken(config):
    return [claim.text for claim in audit(config) if not claim.holds]


def test_a_whole_run_passes_the_audit(config):
    write_run(config, range(5))
    assert broken(config) == []


@pytest.mark.parametrize(
    ("steps", "spoil", "said"),
    [
        ([0, 1, 2, 2, 3, 4], None, "each of the 4 steps"),
        (range(5), lambda step, groups: groups[:1] if step == 3 else groups, "each group"),
        (range(5), lambda step, groups: [groups[0], group(f"q{step}", step - 1, 1)], "each group"),
        (range(5), lambda step, groups: [group("p2", step - 1), groups[1]], "each prompt"),
        (range(5), lambda step, groups: [groups[0], group(f"q{step}", step)], "no token"),
        (range(5), lambda step, groups: [groups[0], group(f"q{step}", step - 2)], "no token"),
    ],
)
def test_each_kind_of_loss_is_found(config, steps, spoil, said):
    write_run(config, steps, spoil)
    [found] = broken(config)
    assert found.startswith(said)
