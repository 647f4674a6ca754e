"""What a step waits for a checkpoint, and how long writing and verifying it takes.

python benchmarks/checkpoints.py --hidden 160 512
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from actors.checkpointing import Checkpointer
from actors.launch import running
from actors.runtime import ray_runtime
from rlpost.batching import BatchPlan, Sample, build_batches
from rlpost.config import load
from rlpost.learning import training_phase
from rlpost.models import prepare_model
from rlpost.schema import RunConfig
from rlpost.types import Trajectory

ROUNDS = 5
LAYERS = 8


def configuration(hidden: int, folder: Path) -> RunConfig:
    """Return a recipe with a model of so many hidden units."""
    heads = hidden // 32
    shape = f"hidden_size: {hidden}, intermediate_size: {3 * hidden}, num_heads: {heads}"
    scratch = f"model.scratch={{num_layers: {LAYERS}, {shape}, num_kv_heads: {heads}}}"
    settings = ["checkpoint.every=1", "ray.num_cpus=2", f"run_dir={folder}"]
    return load("quickstart", [scratch, *settings])


async def measured(config: RunConfig, folder: Path) -> tuple[int, list[list[float]]]:
    """Return a checkpoint's size, and seconds waited, written and verified, a round each."""
    words = Trajectory(
        prompt_ids=(30, 31),
        token_ids=(32, 33),
        loss_mask=(True, True),
        behavior_logprobs=(-5.0, -5.0),
        weight_versions=(0, 0),
        text="",
        finish_reason="stop",
    )
    plan = BatchPlan(
        num_minibatches=1,
        num_ranks=1,
        micro_batch_size=8,
        reduction="token_mean",
        max_response_tokens=4,
    )
    batches = build_batches([Sample(trajectory=words, advantage=1.0)] * 8, plan, 0)
    seconds: list[list[float]] = []
    async with running(config, ("learner",)) as cast:
        learner = await cast.learners()
        model = prepare_model(config, folder / "model")
        await learner.load(model, training_phase(config), 600.0)
        checkpoints = Checkpointer(config, learner, "")
        for step in range(1, ROUNDS + 1):
            await learner.update(batches, step)
            times = [time.perf_counter()]
            await checkpoints.after(step, {}, {})
            times.append(time.perf_counter())
            await checkpoints.finish()
            times.append(time.perf_counter())
            size_bytes = checkpoints.store.verify(step).size_bytes
            times.append(time.perf_counter())
            seconds.append([end - begin for begin, end in pairwise(times)])
    return size_bytes, seconds


def main() -> None:
    """Measure each size and print one line for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, nargs="+", default=[160, 512])
    for hidden in parser.parse_args().hidden:
        with tempfile.TemporaryDirectory() as name:
            config = configuration(hidden, Path(name))
            with ray_runtime(config.ray):
                size_bytes, seconds = asyncio.run(measured(config, Path(name)))
        waited, written, verified = (
            statistics.median(column) for column in zip(*seconds, strict=True)
        )
        sys.stdout.write(
            f"{size_bytes / 1e6:.0f} MB: a step waits {waited:.3f} s; written {written:.2f} s "
            f"after that, while the run goes on; read and compared in {verified:.2f} s\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
