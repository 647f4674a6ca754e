"""Sync beside async at several bounds of staleness: seconds a step, and the reward reached.

    python benchmarks/async.py --json result.json model.dtype=bfloat16

One cast of actors runs all variants in turn, each from the same weights over the same prompts, for
as many samples: the model, task and reward of `throughput.py`, at two lengths of responses. What
the runs share makes their rewards comparable; `--rounds` repeats all with other seeds.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from measured import write_json
from throughput import SETTINGS, configuration, small_tokenizer

FIGURES = ("seconds", "tokens_per_s", "length", "staleness", "reward")
VARIANTS = {
    "sync": [],
    "async, 0": ["mode=async", "max_staleness=0"],
    "async, 1": ["mode=async", "max_staleness=1", "old_logprobs=behavior"],
    "async, 2": ["mode=async", "max_staleness=2", "old_logprobs=behavior"],
    "async, 4": ["mode=async", "max_staleness=4", "old_logprobs=behavior"],
    "async, 2, oversampling 1.5": [
        "mode=async",
        "max_staleness=2",
        "oversampling=1.5",
        "old_logprobs=behavior",
    ],
}


async def measure(args: argparse.Namespace, setting: str) -> list[dict[str, Any]]:
    """Return each run's measurements."""
    from actors.launch import running
    from actors.runtime import ray_runtime
    from actors.training import train_with
    from actors.workshop import Workshop
    from rlpost.placing.seats import ROLES
    from rlpost.reporting.console import Board

    runs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small_tokenizer(folder)
        base = configuration(args, SETTINGS[setting], folder, f"steps={args.steps}")
        with ray_runtime(base.ray), Board(total_runs=args.rounds * len(VARIANTS)) as board:
            async with running(base, ROLES) as cast:
                for seed in range(args.rounds):
                    for variant, overrides in VARIANTS.items():
                        words = [*overrides, f"seed={seed}", f"steps={args.steps}"]
                        words.append(f"run_dir={folder / str(len(runs))}")
                        config = configuration(args, SETTINGS[setting], folder, *words)
                        with board.run(f"{setting}, {variant}", args.steps) as view:
                            workshop = asyncio.to_thread(Workshop, config)
                            history = await train_with(cast, config, workshop, view)
                        runs.append({"setting": setting, "variant": variant, **summary(history)})
    return runs


def summary(history: list[dict[str, float]]) -> dict[str, Any]:
    """Return a run's figures; the first step, in which nothing can be ahead, does not count."""
    steps = history[2:]
    late = history[-3:]
    return {
        "seconds": statistics.fmean(step["time/step_s"] for step in steps),
        "tokens_per_s": sum(step["tokens/trained"] for step in steps)
        / sum(step["time/step_s"] for step in steps),
        "length": statistics.fmean(step["response/length_mean"] for step in steps),
        "staleness": statistics.fmean(step["staleness/mean"] for step in steps),
        "reward": statistics.fmean(step["reward/mean"] for step in late),
        "waited_s": statistics.fmean(step["time/rollout_s"] for step in steps),
        "learned_s": statistics.fmean(step["time/learn_s"] for step in steps),
    }


def rows(setting: str, runs: list[dict[str, Any]]) -> list[str]:
    """Return a setting's lines of the table.

    The limit is the slower of sampling alone and learning alone, as the sync runs do them in turn.
    """
    limit = max(
        statistics.median(run[part] for run in runs if run["variant"] == "sync")
        for part in ("waited_s", "learned_s")
    )
    lines = []
    for variant in VARIANTS:
        own = [run for run in runs if run["variant"] == variant]
        median = {name: statistics.median(run[name] for run in own) for name in FIGURES}
        lines.append(
            f"| {setting} | {variant} | {median['seconds']:.2f} | {median['seconds'] / limit:.2f} "
            f"| {median['tokens_per_s']:,.0f} | {median['length']:.0f} | "
            f"{median['staleness']:.2f} | {median['reward']:.3f} |"
        )
    return lines


def main() -> None:
    """Measure the settings and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="of the recipe: field=value")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--micro-batch-tokens", type=int, default=4096)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    runs = []
    for setting in args.settings:
        runs += asyncio.run(measure(args, setting))
    print("| setting | variant | s a step | : limit | tokens/s | tokens a sample | age | reward |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for setting in args.settings:
        print("\n".join(rows(setting, [run for run in runs if run["setting"] == setting])))
    if args.json:
        write_json(args.json, vars(args), runs)


if __name__ == "__main__":
    sys.exit(main())
