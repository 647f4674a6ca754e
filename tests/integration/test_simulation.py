"""The simulator against the real loop: its own rates give the step time that was measured."""

import asyncio
from statistics import median, quantiles

import pytest

from actors.launch import running
from actors.training import train_with
from actors.workshop import Workshop
from rlpost.config import load
from rlpost.placing.seats import ROLES
from rlpost.reporting.console import Board
from rlpost.simulation.command import Command, run_command

STEPS = ["steps=12", "eval.every=0", "checkpoint.export_at_end=false"]
MODES = {"sync": [], "async": ["mode=async", "max_staleness=2", "old_logprobs=behavior"]}


@pytest.fixture(scope="module")
def runs(ray_session, cpus, short, tmp_path_factory):
    """A run in each mode, on the same actors."""
    folders = {mode: tmp_path_factory.mktemp(mode) for mode in MODES}
    configs = [
        load("quickstart", [*short, *STEPS, *words, cpus, f"run_dir={folders[mode]}"])
        for mode, words in MODES.items()
    ]

    async def train():
        async with running(configs[0], ROLES) as cast:
            with Board(total_runs=len(configs)) as board:
                for config in configs:
                    with board.run(config.mode.value, config.steps) as view:
                        preparing = asyncio.to_thread(Workshop, config)
                        await train_with(cast, config, preparing, view)

    asyncio.run(train())
    return folders


@pytest.mark.parametrize("mode", MODES)
def test_simulated_step_time_is_within_15_percent_of_the_measured_one(runs, metrics, mode):
    command = Command(overrides=(), cluster={}, run_dir=runs[mode], as_json=False)
    report = run_command(command)
    steps = [line["time/step_s"] for line in metrics(runs[mode]) if line["step"] > 2]
    assert report.measured_step_s == median(steps)
    # On a machine that others use too, the steps of one run may differ by more than that.
    low, _, high = quantiles(steps, n=4)
    rel = max(0.15, (high - low) / median(steps))
    assert report.step_s == pytest.approx(median(steps), rel=rel)
    assert max(report.staleness) == (2 if mode == "async" else 0)
