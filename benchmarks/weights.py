"""Weights from the learner into vLLM, proved, beside a plain copy of as many bytes.

    python benchmarks/weights.py --json result.json

The real way: a DeepSpeed rank publishes a scratch model of each size to a vLLM worker, which
compares fingerprints before it serves. Learner and vLLM have a thread each, unless a recipe's field
says otherwise. Transfers, copies and packing take their turns; a copy is of one tensor into another
that exists, by one thread. Packing is what vLLM does on a CPU to the layers of each update, alone,
by one thread, over memory that exists: a bound that no transfer can beat. Extra memory is what a
process holds at most during a transfer beyond what it held before it, sampled every 10 ms.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

import psutil
import torch
from measured import write_json

PROCESSES = {"learner": "LearnerRank", "vllm": "EngineCore"}


def shape_of(size_mib: int) -> dict[str, int]:
    """Return the shape of a model whose float32 weights take about so many MiB."""
    hidden = 256 if size_mib < 64 else 1024
    a_layer = (12 * hidden * hidden + 2 * hidden) * 4 / 2**20  # MLP of 8/3 x hidden, attention
    return {
        "num_layers": max(1, round(size_mib / a_layer)),
        "hidden_size": hidden,
        "intermediate_size": hidden * 8 // 3 // 64 * 64,
        "num_heads": hidden // 64,
        "num_kv_heads": hidden // 64,
    }


class Packing:
    """The linear layers of a model of such a shape, packed by vLLM for its kernels of a CPU."""

    def __init__(self, shape: dict[str, int]) -> None:
        hidden, inner = shape["hidden_size"], shape["intermediate_size"]
        sizes = ((hidden, 3 * hidden), (hidden, hidden), (hidden, 2 * inner), (inner, hidden))
        self._layers = [
            torch.nn.Linear(*size, bias=False) for _ in range(shape["num_layers"]) for size in sizes
        ]
        self.size_bytes = sum(layer.weight.nbytes for layer in self._layers)
        self.seconds()  # the first allocates

    def seconds(self) -> float:
        """Return how long it takes to put packed weights in the place of those before."""
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        started = time.perf_counter()
        for layer in self._layers:
            dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
        return time.perf_counter() - started


class Peaks:
    """Samples the memory of the actors' processes in a thread while the block lasts."""

    def __init__(self) -> None:
        self._processes = {
            name: [p for p in psutil.Process().children(recursive=True) if part in _title(p)]
            for name, part in PROCESSES.items()
        }
        self._before = {name: self._held(name) for name in PROCESSES}
        self.extra_mib = dict.fromkeys(PROCESSES, 0.0)
        self._over = threading.Event()

    def _held(self, name: str) -> float:
        return sum(process.memory_info().rss for process in self._processes[name]) / 2**20

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            for name in PROCESSES:
                extra = self._held(name) - self._before[name]
                self.extra_mib[name] = max(self.extra_mib[name], extra)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def _title(process: psutil.Process) -> str:
    return " ".join([process.name(), *process.cmdline()])


async def measure(size_mib: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return each transfer of a size with the copy that came after it."""
    from actors.launch import running
    from actors.runtime import ray_runtime
    from actors.workshop import Workshop
    from rlpost.config import load
    from rlpost.learning import training_phase

    runs = []
    shape = shape_of(size_mib)
    scratch = ", ".join(f"{name}: {n}" for name, n in shape.items())
    packing = Packing(shape)
    with tempfile.TemporaryDirectory() as folder:
        config = load(
            "quickstart",
            [f"model.scratch={{{scratch}}}", "steps=1", f"run_dir={folder}", *args.overrides],
        )
        with ray_runtime(config.ray):
            async with running(config, ("learner", "rollout")) as cast:
                model = Workshop(config).model_folder
                rollouts, learner = await asyncio.gather(cast.rollouts(model), cast.learners())
                await learner.load(model, training_phase(config), 900.0)
                learner.attach(rollouts)
                for number in range(args.rounds + 1):
                    with Peaks() as peaks:
                        values = await learner.publish(number)
                    size = int(values["weights/size_bytes"])
                    run = {
                        "size_bytes": size,
                        "sync_s": values["weights/sync_s"],
                        "pause_s": values["weights/pause_s"],
                        "copy_s": copy_s(size),
                        "packing_s": packing.seconds() * size / packing.size_bytes,
                        "extra_mib": peaks.extra_mib,
                    }
                    sys.stderr.write(f"  {run}\n")
                    if number:  # the first allocates
                        runs.append(run)
    return runs


def copy_s(size: int) -> float:
    """Return the seconds that a plain copy of so many bytes takes."""
    source, target = torch.ones(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    started = time.perf_counter()
    target.copy_(source)
    return time.perf_counter() - started


def row(runs: list[dict[str, Any]]) -> str:
    """Return a size's line of the table."""
    sync, pause, copy, packing = (
        statistics.median(run[name] for run in runs)
        for name in ("sync_s", "pause_s", "copy_s", "packing_s")
    )
    size = runs[0]["size_bytes"]
    extra = [max(run["extra_mib"][name] for run in runs) for name in PROCESSES]
    cells = [
        f"{size / 2**20:,.0f} MiB",
        f"{sync:.3f} s",
        f"{pause:.3f} s",
        f"{size / sync / 1e9:.2f} GB/s",
        f"{size / copy / 1e9:.2f} GB/s",
        f"{copy / sync:.2f}",
        f"{packing:.3f} s",
        f"{copy / packing:.2f}",
        *(f"{one:,.0f} MiB" for one in extra),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure each size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="of the recipe: field=value")
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 128, 1024], help="in MiB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs, rows = [], []
    for size in args.sizes:
        found = asyncio.run(measure(size, args))
        runs += found
        rows.append(row(found))
    print("| weights | transfer | engines paused | transfer | copy | transfer : copy | ", end="")
    print("packing alone | packing : copy | extra, learner | extra, vLLM |")
    print("|" + " --- |" * 10)
    print("\n".join(rows))
    if args.json:
        write_json(args.json, vars(args), runs)


if __name__ == "__main__":
    main()
