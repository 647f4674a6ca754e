"""What the driver itself costs a trajectory: the real controller on engines that answer at once.

    python benchmarks/controller.py --json result.json

Sampling, verification and learning take no time here, and nothing goes through Ray, so all that is
measured is rlpost's own: drawing prompts, spreading groups over workers, advantages, batches,
metrics. Memory is the process's, after half of the steps and after all.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from measured import write_json

from actors.actor import Actor
from actors.alarm import Alarm
from actors.crew import Care, Crew
from actors.handles import RolloutPool
from actors.heartbeat import Heartbeat
from rlpost.batching import RankBatch
from rlpost.config import load
from rlpost.controller import Controller, Parts
from rlpost.incidents import Incidents
from rlpost.metrics import Metrics
from rlpost.schema import SupervisionConfig
from rlpost.types import Group, Prompt, Trajectory, Verdict

TOKENS, GROUP = 128, 8


class Instant(Actor):
    """A rollout worker that answers at once."""

    async def call(self, verb: str, *arguments: Any, timeout_s: float) -> Any:
        """Answer as `actors.rollout.RolloutWorker` would."""
        del timeout_s
        if verb == "weight_version":
            return self.handle.version
        prompt, group_size, _ = arguments
        trajectory = Trajectory(
            prompt_ids=prompt.token_ids,
            token_ids=tuple(range(TOKENS)),
            loss_mask=(True,) * TOKENS,
            behavior_logprobs=(-1.0,) * TOKENS,
            weight_versions=(self.handle.version,) * TOKENS,
            text="",
            finish_reason="stop",
        )
        return Group(prompt=prompt, trajectories=(trajectory,) * group_size)


class World:
    """Prompts, verifiers, learner and recorder in one, all of them instant."""

    num_ranks = 1

    def __init__(self) -> None:
        self.version = -1
        self.drawn = 0

    def draw(self, count: int) -> list[Prompt]:
        """Return new prompts."""
        self.drawn += count
        return [
            Prompt(id=f"p{n}", text="", token_ids=(1,) * 32, answer="")
            for n in range(self.drawn - count, self.drawn)
        ]

    async def verify(self, prompt: Prompt, trajectories: Sequence[Trajectory]) -> list[Verdict]:
        """Return rewards that differ within the group."""
        del prompt
        return [Verdict(reward=float(index % 2)) for index, _ in enumerate(trajectories)]

    async def update(self, batches: Sequence[RankBatch], step: int) -> Metrics:
        """Learn nothing."""
        del batches, step
        metrics = Metrics()
        metrics.sum("tokens/trained", 1.0)
        return metrics

    async def publish(self, version: int) -> dict[str, float]:
        """Serve a version."""
        self.version = version
        return {}

    def phase(self, name: str) -> None:
        """Show nothing."""

    def record(self, step: int, values: dict[str, float], groups: Sequence[Group]) -> None:
        """Keep nothing."""


async def instant_crew(num_workers: int, world: World) -> Crew:
    """Return workers that answer at once and are never lost."""
    rules = SupervisionConfig(heartbeat_s=3600.0)

    async def begin(worker: Actor) -> None:
        del worker

    care = Care(
        renew=begin,
        incidents=Incidents(rules, Path("nowhere")),
        alarm=Alarm(),
        heartbeat=Heartbeat(rules, Path("nowhere")),
    )
    workers = [
        Instant(name=f"rollout-{i}", node="", node_id="", handle=world, overlapping=True)
        for i in range(num_workers)
    ]
    crew = Crew("rollout", workers, care, 60.0, proves=False)
    await crew.start(begin)
    return crew


async def measure(num_workers: int, prompts: int, steps: int) -> dict[str, float]:
    """Return the driver's milliseconds a trajectory and its memory."""
    config = load(
        "quickstart",
        [
            f"steps={steps}",
            f"prompts_per_step={prompts}",
            f"group_size={GROUP}",
            "minibatches=1",
            "eval.every=0",
            f"sampling.max_response_tokens={TOKENS}",
            "model.scratch.max_position_embeddings=4096",
        ],
    )
    world = World()
    crew = await instant_crew(num_workers, world)
    parts = Parts(
        prompts=world,
        rollouts=RolloutPool(crew, 60.0),
        verifiers=world,
        learner=world,  # pyrefly: ignore[bad-argument-type]  # it saves and exports nothing
        reference=None,
    )
    evaluator: Any = None
    controller = Controller(config, parts, evaluator, world)
    await controller.start()
    process, memory, took = psutil.Process(), [], []
    for step in range(1, steps + 1):
        started = time.perf_counter()
        await controller.step(step)
        took.append((time.perf_counter() - started) * 1000 / (prompts * GROUP))
        if step in (steps // 2, steps):
            memory.append(process.memory_info().rss / 2**20)
        sys.stderr.write(f"\r{num_workers} workers: step {step} of {steps}")
    await controller.close()
    await crew.care.heartbeat.close()
    return {
        "workers": num_workers,
        "ms_a_trajectory": statistics.median(took),
        "mib_half_way": memory[0],
        "mib_at_the_end": memory[-1],
    }


def main() -> None:
    """Measure each number of workers and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--prompts-a-worker", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for num_workers in args.workers:
        prompts = max(16, int(num_workers * args.prompts_a_worker))
        runs.append(asyncio.run(measure(num_workers, prompts, args.steps)))
    sys.stderr.write("\r" + 60 * " " + "\r")
    print("| rollout workers | ms a trajectory | MiB half way | MiB at the end |")
    print("| --- | --- | --- | --- |")
    for run in runs:
        print(
            f"| {run['workers']:,} | {run['ms_a_trajectory']:.3f} | {run['mib_half_way']:.0f} | "
            f"{run['mib_at_the_end']:.0f} |"
        )
    if args.json:
        write_json(args.json, vars(args), runs)


if __name__ == "__main__":
    main()
