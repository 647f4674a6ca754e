"""Prints the most memory that one learner rank's updates take, beside what it had before.

python tests/integration/learner_memory.py field=value...

A tiny model goes first, so that what libraries set aside once is not counted. glibc keeps what is
freed unless it is told otherwise (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_).
"""

import gc
import json
import random
import socket
import sys
import tempfile
from pathlib import Path

import torch

from actors.learner import LearnerRank
from rlpost.batching import BatchPlan, Sample, build_batches
from rlpost.config import load
from rlpost.learning import training_phase
from rlpost.models import prepare_model
from rlpost.types import Trajectory

NUM_UPDATES = 3
TINY = (
    "model.scratch={num_layers: 1, hidden_size: 32, intermediate_size: 32, num_heads: 1, "
    "num_kv_heads: 1}"
)


def status_bytes(name):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


def batch(config, step):
    """Return a step's batch of sequences that are as long as the recipe allows."""
    rng = random.Random(step)
    prompt, response = config.sampling.max_prompt_tokens, config.sampling.max_response_tokens
    trajectories = [
        Trajectory(
            prompt_ids=tuple(rng.randrange(2, 200) for _ in range(prompt)),
            token_ids=tuple(rng.randrange(2, 200) for _ in range(response)),
            loss_mask=(True,) * response,
            behavior_logprobs=(-5.5,) * response,
            weight_versions=(0,) * response,
            text="",
            finish_reason="stop",
        )
        for _ in range(config.prompts_per_step * config.group_size)
    ]
    plan = BatchPlan(
        num_minibatches=config.minibatches,
        num_ranks=1,
        micro_batch_size=config.learner.micro_batch_size,
        reduction="token_mean",
        max_response_tokens=response,
    )
    samples = [Sample(trajectory=one, advantage=rng.gauss(0.0, 1.0)) for one in trajectories]
    return build_batches(samples, plan, step)[0]


def updates(rank, config, folder):
    """Load a model and train on a few steps."""
    rank.config = config
    rank.load(str(prepare_model(config, folder)), training_phase(config))
    for step in range(1, NUM_UPDATES + 1):
        rank.update(batch(config, step), step)


def main(overrides):
    torch.set_num_threads(1)
    tiny, config = load("quickstart", [*overrides, TINY]), load("quickstart", overrides)
    rank = LearnerRank(tiny, 0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rank.open_door()
    rank.connect("127.0.0.1", port)
    with tempfile.TemporaryDirectory() as folder:
        updates(rank, tiny, Path(folder) / "tiny")
        rank._release()
        gc.collect()
        before = status_bytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from now
        updates(rank, config, Path(folder) / "model")
        print(json.dumps({"peak_bytes": status_bytes("VmHWM") - before}))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
