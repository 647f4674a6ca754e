"""Padding waste and learner tokens per second: cutting by sequences, by tokens, and packed rows.

    python benchmarks/packing.py --data path/to/gsm8k/train.jsonl --json result.json

One optimiser step's forward and backward over the same sequences, cut in each way by turns. Lengths
are those of GSM8K's answers in characters, shortened by four, about as a tokenizer shortens them;
without `--data`, log-normal ones of the same mean and spread.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measured import write_json

from rlpost.batching import BatchPlan, MicroBatch, Sample, build_batches
from rlpost.config import load
from rlpost.learning import TokenPolicy, policy_loss, training_phase
from rlpost.models import load_policy, prepare_model
from rlpost.objectives import build_from
from rlpost.types import Trajectory

PROMPT, LONGEST = 24, 400


def lengths(args: argparse.Namespace) -> list[int]:
    rng = random.Random(0)
    if args.data is None:
        drawn = [rng.lognormvariate(4.15, 0.5) for _ in range(args.sequences)]
    else:
        lines = args.data.read_text(encoding="utf-8").splitlines()
        drawn = [len(json.loads(line)["answer"]) / 4 for line in rng.sample(lines, args.sequences)]
    return [min(LONGEST, max(1, int(length))) for length in drawn]


def samples(args: argparse.Namespace) -> list[Sample]:
    rng = random.Random(1)
    made = []
    for length in lengths(args):
        trajectory = Trajectory(
            prompt_ids=tuple(rng.randrange(2, 250) for _ in range(PROMPT)),
            token_ids=tuple(rng.randrange(2, 250) for _ in range(length)),
            loss_mask=(True,) * length,
            behavior_logprobs=(-5.5,) * length,
            weight_versions=(0,) * length,
            text="",
            finish_reason="stop",
        )
        made.append(Sample(trajectory=trajectory, advantage=rng.gauss(0.0, 1.0)))
    return made


def main() -> None:
    """Measure each way and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--budget", type=int, default=2048, help="tokens of a micro-batch")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    scratch = (
        f"model.scratch={{num_layers: {args.layers}, hidden_size: {args.hidden}, "
        f"intermediate_size: {3 * args.hidden}, num_heads: 4, num_kv_heads: 2}}"
    )
    config = load("quickstart", [scratch, "objective=clip"])
    with tempfile.TemporaryDirectory() as folder:
        policy = TokenPolicy(
            load_policy(config, prepare_model(config, Path(folder) / "model")), 1.0
        )
    ways: dict[str, dict[str, Any]] = {
        "all padded to the longest": {"micro_batch_size": args.budget // (PROMPT + LONGEST)},
        "sequences, sorted": {"micro_batch_size": args.budget // (PROMPT + LONGEST)},
        "tokens, sorted": {"micro_batch_tokens": args.budget},
        "tokens, packed": {"micro_batch_tokens": args.budget, "packing": True},
    }
    made = samples(args)
    runs: list[dict[str, Any]] = []
    for turn in range(args.rounds + 1):
        for name, cut in ways.items():
            micros = cut_into(made, cut, to_longest=name.startswith("all"))
            sys.stderr.write(f"\rround {turn} of {args.rounds}: {name:<30}")
            seconds = measure(config, policy, micros, packing=cut.get("packing", False))
            real = sum(int(micro.attention_mask.sum()) for micro in micros)
            processed = real if cut.get("packing") else sum(m.token_ids.numel() for m in micros)
            if turn:  # the first round warms up
                runs.append(
                    {
                        "way": name,
                        "seconds": seconds,
                        "tokens_per_s": real / seconds,
                        "padding_frac": 1 - real / processed,
                        "micro_batches": len(micros),
                    }
                )
    sys.stderr.write("\r" + 60 * " " + "\r")
    print("| micro-batches cut by | number | padding | tokens / s |")
    print("| --- | --- | --- | --- |")
    for name in ways:
        mine = [run for run in runs if run["way"] == name]
        speed = statistics.median(run["tokens_per_s"] for run in mine)
        one = mine[0]
        print(f"| {name} | {one['micro_batches']} | {one['padding_frac']:.1%} | {speed:,.0f} |")
    if args.json:
        write_json(args.json, vars(args), runs)


def cut_into(made: list[Sample], cut: dict[str, Any], *, to_longest: bool) -> list[MicroBatch]:
    plan = BatchPlan(
        num_minibatches=1,
        num_ranks=1,
        reduction="sequence_mean",
        max_response_tokens=LONGEST,
        **{"micro_batch_size": 1} | cut,
    )
    (batch,) = build_batches(made, plan, 0)
    micros = list(batch.minibatches[0])
    return [widened(micro) for micro in micros] if to_longest else micros


def widened(micro: MicroBatch) -> MicroBatch:
    """Pad a micro-batch to the longest sequence that there may be."""
    missing = PROMPT + LONGEST - micro.token_ids.shape[1]
    return MicroBatch(
        **{
            name: None if value is None else torch.nn.functional.pad(value, (0, missing))
            for name in micro.__slots__
            if (value := getattr(micro, name)) is not None or name == "ref_logprobs"
        }
    )


def measure(config: Any, policy: TokenPolicy, micros: list[MicroBatch], *, packing: bool) -> float:
    """Return the seconds of one forward and backward over all micro-batches."""
    policy.packing = packing
    objective, phase = build_from(config.objective), training_phase(config)
    policy.zero_grad(set_to_none=True)
    started = time.perf_counter()
    for micro in micros:
        logprobs, entropy = policy(micro.token_ids, micro.attention_mask, micro.loss_mask)
        assert entropy is not None
        loss, _ = policy_loss(logprobs, entropy, logprobs.detach(), micro, objective, phase, step=1)
        loss.backward()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
