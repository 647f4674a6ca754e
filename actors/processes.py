"""The process that an actor of each role gets: its class, environment and resources."""

from typing import Any

import ray

from actors.actor import PULSE
from actors.learner import LearnerRank
from actors.placement import Place
from actors.reference import ReferencePolicy
from actors.reward import RewardWorker
from actors.rollout import RolloutWorker
from rlpost.placing.seats import Seat
from rlpost.placing.sharing import num_sharing
from rlpost.schema import RunConfig

_COMMON = {
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
    "PYTHONDONTWRITEBYTECODE": "",  # without cached bytecode vLLM takes a minute longer to start
}

KINDS = {
    "learner": LearnerRank,
    "rollout": RolloutWorker,
    "reference": ReferencePolicy,
    "reward": RewardWorker,
}
OVERLAPPING = ("rollout", "reward")  # these serve many calls at once


def _environment(config: RunConfig, role: str) -> dict[str, str]:
    """Return the environment of a role's process: thread counts, and quiet libraries."""
    if role == "rollout":
        by_ipc = config.rollout.num_gpus and num_sharing(config)
        # CUDA IPC's handles reach vLLM's own processes pickled, through a socket of this user's.
        handles = {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"} if by_ipc else {}
        return _COMMON | {
            **handles,
            "OMP_NUM_THREADS": str(config.rollout.num_threads),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # AsyncLLM's engine is a child process either way; `uni` keeps its worker in it.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if config.rollout.num_gpus else "0",
            "VLLM_NO_USAGE_STATS": "1",
            # vLLM compiles a few sampling functions even when eager: a minute of C++ on CPU.
            "TORCH_COMPILE_DISABLE": "1" if config.rollout.enforce_eager else "0",
            "VLLM_LOGGING_LEVEL": "WARNING",
        }
    threads = {"learner": config.learner.num_threads, "reference": config.reference.num_threads}
    environment = _COMMON | {"OMP_NUM_THREADS": str(threads.get(role, 1))}
    if role == "learner" and not config.learner.num_gpus:
        environment |= {
            "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # fewer page faults by activations
        }
    return environment


def start_process(config: RunConfig, seat: Seat, place: Place) -> Any:
    """Start an actor in its place and return Ray's handle of it."""
    options: dict[str, Any] = {
        "num_cpus": seat.num_cpus,
        "num_gpus": seat.num_gpus,
        "scheduling_strategy": place.strategy,
        "runtime_env": {"env_vars": _environment(config, seat.role)},
    }
    if seat.role in OVERLAPPING:
        options["max_concurrency"] = 1000
    else:
        options["concurrency_groups"] = {PULSE: 1}
    return ray.remote(**options)(KINDS[seat.role]).remote(config, seat.index)
