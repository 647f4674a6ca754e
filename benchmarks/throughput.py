"""Tokens trained per second of the whole loop: rlpost and TRL's GRPOTrainer, step by step in turn.

    python benchmarks/throughput.py --json result.json

Both start from the same weights and see the same prompts in the same order, with the same group
size, response limit, sampling, reward, loss (clip, sequence mean) and AdamW, on the same cores: the
one that has no turn waits. rlpost has an engine and a learner rank on each core, TRL as many
threads; `model.dtype` is rlpost's, `--trl-bf16` is TRL's. A step samples, scores, learns and, for
rlpost, puts the weights into vLLM. With `mode=async` a turn should be several steps (`--steps 5`):
it begins and ends with all samples of later steps ready, so that nothing is sampled while the other
has its turn. The first turns warm up and do not count. TRL must be installed beside rlpost.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measured import write_json

SETTINGS = {"short": 64, "long-tailed": 448}
PROMPTS, GROUP = 32, 8
# With the two special tokens 128, so that an untrained model ends after as many on average.
ALPHABET = [*map(chr, range(33, 127)), "\u0120", "\u010a", *map(chr, range(0xC0, 0xDE))]
MODEL = (
    "model.scratch={num_layers: 4, hidden_size: 128, intermediate_size: 384, num_heads: 4, "
    "num_kv_heads: 2}"
)


def share_of_digits(response: str, answer: str | None, metadata: Mapping[str, Any]) -> float:
    """Return the share of digits in a response: a reward that any policy can raise."""
    del answer, metadata
    return sum(character.isdigit() for character in response) / max(1, len(response))


def small_tokenizer(folder: Path) -> None:
    """Write the tokenizer that `configuration` expects in a folder."""
    from rlpost.characters import character_tokenizer

    character_tokenizer(ALPHABET).save_pretrained(str(folder / "tokenizer"))


def configuration(args: argparse.Namespace, cap: int, folder: Path, *overrides: str) -> Any:
    """Return the run of a setting in a folder that holds the tokenizer."""
    from rlpost.config import load

    return load(
        "quickstart",
        [
            "objective=clip",
            "task=ascending_digits",
            "task.verifier=throughput:share_of_digits",
            MODEL,
            f"model.tokenizer_path={folder / 'tokenizer'}",
            f"prompts_per_step={PROMPTS}",
            f"group_size={GROUP}",
            "minibatches=1",
            "reduction=sequence_mean",
            f"sampling.max_response_tokens={cap}",
            "warmstart.steps=0",
            f"learner.learning_rate={args.learning_rate}",
            # A process a core: small products gain little from a second thread.
            f"learner.num_ranks={args.threads}",
            f"learner.num_cpus={0.8 / args.threads}",
            f"learner.micro_batch_tokens={max(args.micro_batch_tokens, cap + 16)}",
            f"rollout.num_workers={args.threads}",
            f"rollout.num_cpus={0.8 / args.threads}",
            "guards.max_logprob_gap=0.02",  # for model.dtype=bfloat16
            "eval.every=0",
            "checkpoint.export_at_end=false",
            "tracking.rollouts_every=0",
            f"run_dir={folder / 'run'}",
            *overrides,
            *args.overrides,
        ],
    )


class TrlTurns:
    """TRL's trainer in a process of its own, which takes a step when told to."""

    def __init__(self, job: Mapping[str, Any], threads: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--trl-worker", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        self._read()  # it is ready

    def step(self) -> dict[str, float]:
        """Take one step and return its seconds, tokens and mean reward."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write("\n")
        stdin.flush()
        return self._read()

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"TRL ended with exit status {self._process.wait()}: see above")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def trl_worker(job: Mapping[str, Any]) -> None:
    """Train with TRL; a line on stdin is a turn, a line of JSON its result."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    seen: dict[str, float] = {}

    def reward(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        values = [share_of_digits(text, None, {}) for text in completions]
        seen["tokens"] = float(sum(map(len, completion_ids)))
        seen["reward"] = sum(values) / len(values)
        return values

    class Turns(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            print(json.dumps(seen), flush=True)
            sys.stdin.readline()
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seen["seconds"] = time.perf_counter() - self.started

    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    arguments = GRPOConfig(
        output_dir=job["folder"],
        use_cpu=True,
        bf16=job["bf16"],
        max_steps=job["steps"] + 1,  # the last step's result is told as the next begins
        per_device_train_batch_size=job["micro_batch_size"],
        gradient_accumulation_steps=PROMPTS * GROUP // job["micro_batch_size"],
        steps_per_generation=PROMPTS * GROUP // job["micro_batch_size"],
        num_generations=GROUP,
        max_completion_length=job["cap"],
        temperature=1.0,
        beta=0.0,
        epsilon=0.2,
        loss_type="grpo",
        scale_rewards="group",
        learning_rate=job["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        save_strategy="no",
        report_to=[],
        logging_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    trainer = GRPOTrainer(
        model=job["model"],
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": job["prompts"]}),
        reward_funcs=reward,
        processing_class=tokenizer,
        callbacks=[Turns()],
    )
    trainer.train()


async def alternate(args: argparse.Namespace, cap: int) -> list[dict[str, Any]]:
    """Return each turn's measurements, rlpost's and TRL's by turns."""
    from actors.launch import running
    from actors.runtime import ray_runtime
    from actors.training import make_controller
    from actors.workshop import Recording, Workshop
    from rlpost.placing.seats import ROLES
    from rlpost.reporting.console import Board
    from rlpost.reporting.tracking import build_tracker

    total = args.warmup + args.pairs
    turns = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        small_tokenizer(folder)
        config = configuration(args, cap, folder, f"steps={total * args.steps + 8}")
        workshop = Workshop(config)
        prompts = [
            prompt.text for prompt in workshop.stream().draw(PROMPTS * (total * args.steps + 1))
        ]
        job = {
            "model": str(workshop.model_folder),
            "folder": str(folder / "trl"),
            "steps": total * args.steps,
            "cap": cap,
            "learning_rate": args.learning_rate,
            "micro_batch_size": args.trl_micro_batch_size,
            "bf16": args.trl_bf16,
            "prompts": prompts,
        }
        trl = await asyncio.to_thread(TrlTurns, job, args.threads)
        stack.callback(trl.close)
        stack.enter_context(ray_runtime(config.ray))
        board = stack.enter_context(Board(total_runs=1))
        view = stack.enter_context(board.run("rlpost", total * args.steps))
        tracker = stack.enter_context(
            contextlib.closing(build_tracker(config.tracking, workshop.run_dir, {}))
        )
        async with running(config, ROLES) as cast:
            recording = Recording(config, tracker, view)
            controller = await make_controller(workshop, cast, recording, view)
            await controller.start()
            controller.buffer.begin(controller.version)
            for turn in range(1, total + 1):
                if config.staleness_bound:
                    await controller.buffer.settle()
                ours = await take_turn(controller, args.steps, settled=bool(config.staleness_bound))
                turns.append({"system": "rlpost", "turn": turn, **ours})
                theirs = [await asyncio.to_thread(trl.step) for _ in range(args.steps)]
                turns.append({"system": "trl", "turn": turn, **added(theirs)})
                for one in turns[-2:]:
                    print(
                        f"  turn {turn} of {total}  {one['system']:<6} {one['seconds']:7.2f} s  "
                        f"{one['tokens'] / one['seconds']:8.0f} tokens/s  "
                        f"reward {one['reward']:.3f}",
                        file=sys.stderr,
                    )
            await controller.close()
    return turns


async def take_turn(controller: Any, num_steps: int, *, settled: bool) -> dict[str, Any]:
    """Take rlpost's steps; return what they took, waiting for samples under way where told to."""
    started = time.perf_counter()
    steps = [await controller.step(controller.version + 1) for _ in range(num_steps)]
    if settled:
        await controller.buffer.settle()
    seconds = time.perf_counter() - started
    phases = [name for name in steps[0] if name.startswith("time/")]
    return {
        "seconds": seconds,
        "tokens": sum(values["tokens/trained"] for values in steps),
        "reward": statistics.fmean(values["reward/mean"] for values in steps),
        "phases": {name: sum(values[name] for values in steps) for name in phases},
        "padding_frac": statistics.fmean(values["batch/padding_frac"] for values in steps),
    }


def added(steps: list[dict[str, float]]) -> dict[str, float]:
    """Return TRL's steps as one turn."""
    return {
        "seconds": sum(step["seconds"] for step in steps),
        "tokens": sum(step["tokens"] for step in steps),
        "reward": statistics.fmean(step["reward"] for step in steps),
    }


def summary(name: str, turns: list[dict[str, Any]], warmup: int, num_steps: int) -> str:
    """Return a setting's lines of the table."""
    lines = []
    speeds: dict[str, list[float]] = {}
    for system in ("rlpost", "trl"):
        counted = [t for t in turns if t["system"] == system and t["turn"] > warmup]
        speeds[system] = [t["tokens"] / t["seconds"] for t in counted]
        seconds = statistics.median(t["seconds"] for t in counted) / num_steps
        reward = statistics.fmean(t["reward"] for t in counted[-3:])
        length = statistics.fmean(t["tokens"] for t in counted) / (PROMPTS * GROUP * num_steps)
        lines.append(
            f"| {name} | {system} | {statistics.median(speeds[system]):,.0f} | {seconds:.2f} | "
            f"{length:.0f} | {reward:.3f} |"
        )
    ratios = [one / other for one, other in zip(speeds["rlpost"], speeds["trl"], strict=True)]
    lines.append(
        f"{name}: rlpost is {statistics.median(ratios):.2f} times as fast as TRL "
        f"({min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} pairs)"
    )
    return "\n".join(lines)


def main() -> None:
    """Measure the settings and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="of rlpost's recipe: field=value")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="steps a turn")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--micro-batch-tokens", type=int, default=4096)
    parser.add_argument("--trl-micro-batch-size", type=int, default=64, help="sequences")
    parser.add_argument("--trl-bf16", action="store_true")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--trl-worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.trl_worker:
        trl_worker(json.loads(args.trl_worker))
        return
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    runs, tables = [], []
    for name in args.settings:
        turns = asyncio.run(alternate(args, SETTINGS[name]))
        runs += [{"setting": name} | turn for turn in turns]
        tables.append(summary(name, turns, args.warmup, args.steps))
    print("| setting | system | tokens trained / s | s a step | tokens a sample | reward, last |")
    print("| --- | --- | --- | --- | --- | --- |")
    print("\n".join(tables))
    if args.json:
        write_json(args.json, vars(args), runs)


if __name__ == "__main__":
    main()
