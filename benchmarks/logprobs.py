"""Time and memory of a policy loss from hidden states, rlpost's and other libraries', side by side.

    python benchmarks/logprobs.py                       # 4 x 512 x 256 x 65536, float32, on CPU
    python benchmarks/logprobs.py --vocab 32768 131072  # how it grows
    python benchmarks/logprobs.py --device cuda --dtype bfloat16 --hidden 4096

Measured: forward and backward of one loss into hidden states and head. Extra memory is what the
process (on a GPU: its allocator) holds at most beyond its inputs, gradients included. All methods
take turns, `--rounds` times; the least time and the most memory of a method are reported.
Libraries that are not installed are left out: `trl`, `liger-kernel`, and `verl`, of which a folder
that holds `verl/utils/experimental/torch_functional.py` is enough (`--verl PATH`).
"""

import argparse
import contextlib
import ctypes
import gc
import importlib.util
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from rlpost.logprobs import token_logprobs
from rlpost.objectives import ObjectiveInputs, build

MIB = 2**20


@dataclass(frozen=True)
class Case:
    """Leaves `[B, T, H]` and `[V, H]`, tokens and old logprobs `[B, T]`, advantages `[B]`."""

    hidden: Tensor
    weight: Tensor
    tokens: Tensor
    old: Tensor
    advantages: Tensor


Logprobs = Callable[[Case], Tensor]


def make_case(args: argparse.Namespace, num_tokens: int, vocab: int) -> Case:
    generator = torch.Generator().manual_seed(0)
    dtype, rows = getattr(torch, args.dtype), args.batch

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    # Column t of the tokens is predicted by the state before it: one column more than states.
    hidden = normal(rows, num_tokens + 1, args.hidden).to(args.device, dtype).requires_grad_()
    weight = (0.05 * normal(vocab, args.hidden)).to(args.device, dtype).requires_grad_()
    tokens = torch.randint(0, vocab, (rows, num_tokens + 1), generator=generator).to(args.device)
    with torch.no_grad():
        old, _ = token_logprobs(hidden, weight, tokens)
    old = old + 0.1 * normal(*old.shape).to(args.device)
    return Case(hidden, weight, tokens, old, normal(rows).to(args.device))


def states(case: Case) -> Tensor:
    return case.hidden[:, :-1]


def targets(case: Case) -> Tensor:
    return case.tokens[:, 1:]


def naive(case: Case) -> Tensor:
    scores = (states(case) @ case.weight.T).float().log_softmax(-1)
    return scores.gather(-1, targets(case)[..., None])[..., 0]


def ours(case: Case) -> Tensor:
    return token_logprobs(case.hidden, case.weight, case.tokens)[0][:, 1:]


def trl_selective() -> Logprobs:
    from trl.trainer.utils import selective_log_softmax

    return lambda case: selective_log_softmax(states(case) @ case.weight.T, targets(case))


def trl_chunked() -> Logprobs:
    import trl.trainer.utils  # noqa: F401 - its backward pass imports this
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    def logprobs(case: Case) -> Tensor:
        flat = states(case).reshape(-1, case.hidden.shape[-1])
        values = ChunkedLogProbFunction.apply(
            flat, case.weight, None, targets(case).reshape(-1), 1.0, 8192, None, 1.0, ("entropy",)
        )
        return values[0].view(targets(case).shape)

    return logprobs


def verl_fused(folder: Path | None) -> Logprobs:
    name = "verl.utils.experimental.torch_functional"
    if folder is None:
        from importlib import import_module

        module = import_module(name)
    else:
        path = folder / f"{name.replace('.', '/')}.py"
        spec = importlib.util.spec_from_file_location("verl_fused", path)
        if spec is None or spec.loader is None or not path.is_file():
            raise ImportError(f"no {path}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    fused = module.FusedLinearForPPO()
    return lambda case: fused(states(case), case.weight, targets(case))[0]


def loss_on(logprobs: Logprobs, objective_name: str) -> Callable[[Case], Tensor]:
    """Put one of our objectives on anybody's logprobs."""
    objective = build(objective_name)

    def loss(case: Case) -> Tensor:
        values = logprobs(case)
        mask = torch.ones_like(values, dtype=torch.bool)
        return objective(
            ObjectiveInputs(
                logprobs=values,
                old_logprobs=case.old[:, 1:],
                advantages=case.advantages,
                loss_mask=mask,
                weights=torch.full_like(values, 1 / values.numel(), dtype=torch.float32),
            )
        ).loss

    return loss


def liger_grpo() -> Callable[[Case], Tensor]:
    """Liger's loss is fused with the logprobs: clip, without a reference, and nothing else."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    # Compiled, it would measure a C++ compiler in the first round; eager it is as fast here.
    fused = LigerFusedLinearGRPOLoss(beta=0.0, compiled=False, use_ref_model=False)

    def loss(case: Case) -> Tensor:
        mask = torch.ones_like(targets(case))
        return fused(
            states(case),
            case.weight,
            targets(case),
            mask,
            case.advantages,
            old_per_token_logps=case.old[:, 1:],
        )[0]

    return loss


def methods(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[Case], Tensor]]]:
    """Yield each method that is installed, with its name."""
    available: dict[str, Logprobs] = {"rlpost": ours, "naive": naive}
    for name, make in {
        "trl selective": trl_selective,
        "trl chunked": trl_chunked,
        "verl fused": lambda: verl_fused(args.verl),
    }.items():
        try:
            available[name] = make()
        except ImportError as error:
            sys.stderr.write(f"{name} is left out: {error}\n")
    for (name, logprobs), objective in itertools.product(available.items(), args.objectives):
        yield f"{name} + {objective}", loss_on(logprobs, objective)
    if "clip" in args.objectives:
        try:
            yield "liger grpo (clip)", liger_grpo()
        except ImportError as error:
            sys.stderr.write(f"liger is left out: {error}\n")


def measure(loss: Callable[[Case], Tensor], case: Case) -> tuple[float, float]:
    """Return seconds and extra MiB of one forward and backward."""
    case.hidden.grad = case.weight.grad = None
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed goes back, so that peaks compare
    on_gpu = case.hidden.is_cuda
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with resident_peak() as peak:
        started = time.perf_counter()
        loss(case).backward()
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    extra = torch.cuda.max_memory_allocated() - before if on_gpu else peak[0]
    return seconds, extra / MIB


@contextlib.contextmanager
def resident_peak() -> Iterator[list[int]]:
    """Sample this process's memory; the list's number is the most it grew by, in bytes."""
    process, ended, grown = psutil.Process(), threading.Event(), [0]
    start = process.memory_info().rss

    def watch() -> None:
        while not ended.wait(0.002):
            grown[0] = max(grown[0], process.memory_info().rss - start)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield grown
    finally:
        ended.set()
        thread.join()


def main() -> None:
    """Measure every method on every size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocab", type=int, nargs="+", default=[65536])
    parser.add_argument("--objectives", nargs="+", default=["clip", "mhpo", "holder"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="methods whose name contains this")
    parser.add_argument("--verl", type=Path, help="a folder that holds verl's source")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.device}, {args.dtype}, {args.threads} threads")
    print(f"{'B x T x H x V':>24}  {'method':<24} {'seconds':>8} {'extra MiB':>10}")
    for num_tokens, vocab in itertools.product(args.tokens, args.vocab):
        case = make_case(args, num_tokens, vocab)
        chosen = [(n, f) for n, f in methods(args) if args.only in n]
        results: dict[str, list[tuple[float, float]]] = {name: [] for name, _ in chosen}
        for turn in range(args.rounds):
            for name, loss in chosen:
                sys.stderr.write(f"\rround {turn + 1} of {args.rounds}: {name:<30}")
                results[name].append(measure(loss, case))
        sys.stderr.write("\r" + 60 * " " + "\r")
        size = f"{args.batch} x {num_tokens} x {args.hidden} x {vocab}"
        for name, pairs in results.items():
            seconds, extra = min(s for s, _ in pairs), max(m for _, m in pairs)
            print(f"{size:>24}  {name:<24} {seconds:8.2f} {extra:10.0f}", flush=True)


if __name__ == "__main__":
    main()
