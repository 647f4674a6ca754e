"""The learner, the engines, and the way of the weights between them."""

from collections.abc import Iterator

from rlpost.choices import Offload, Reduction, WeightBackend
from rlpost.placing import sharing
from rlpost.schema import RunConfig


def problems(config: RunConfig) -> Iterator[str]:
    """Yield what an actor could not be started with."""
    yield from _learner(config)
    yield from _weights(config)
    yield from sharing.problems(config)
    yield from _engine(config)


def _learner(config: RunConfig) -> Iterator[str]:
    learner = config.learner
    if learner.zero_stage not in range(4):
        yield f"learner.zero_stage must be 0, 1, 2 or 3, got {learner.zero_stage}"
    if learner.offload_optimizer is Offload.cpu and learner.zero_stage == 0:
        yield "learner.offload_optimizer=cpu needs learner.zero_stage of 1 or more, got 0"
    if learner.offload_parameters is Offload.cpu and learner.zero_stage != 3:
        yield (
            f"learner.offload_parameters=cpu needs learner.zero_stage=3, got {learner.zero_stage}"
        )
    if config.reduction is Reduction.constant_length and config.sampling.max_response_tokens < 1:
        yield "reduction=constant_length needs sampling.max_response_tokens of 1 or more"


def _weights(config: RunConfig) -> Iterator[str]:
    backend, num_gpus = config.weights.backend, config.rollout.num_gpus
    if backend in (WeightBackend.nccl, WeightBackend.ipc) and not num_gpus:
        yield f"weights.backend={backend.value} needs GPUs and rollout.num_gpus=0: use shm or auto"
    if backend is WeightBackend.shm and num_gpus:
        yield f"weights.backend=shm is for CPU and rollout.num_gpus={num_gpus:g}: use auto"


def _engine(config: RunConfig) -> Iterator[str]:
    rollout = config.rollout
    if rollout.num_gpus and max(1.0, rollout.num_gpus) != rollout.num_ranks:
        yield (
            f"rollout.num_gpus={rollout.num_gpus:g} must be rollout.tensor_parallel_size="
            f"{rollout.tensor_parallel_size} x rollout.pipeline_parallel_size="
            f"{rollout.pipeline_parallel_size} = {rollout.num_ranks}: an engine has a process on "
            "each of its GPUs"
        )
