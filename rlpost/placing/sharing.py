"""Rollout workers that share the GPUs of learner ranks: which ones, whose, and what rules it out.

They take turns: vLLM sleeps while the learner learns. On a CPU it is cores that they share.
"""

from collections.abc import Iterator

from rlpost.choices import Layout, Mode, Placement, WeightBackend
from rlpost.schema import RunConfig


def num_sharing(config: RunConfig) -> int:
    """Return how many rollout workers, the first ones, share GPUs with learner ranks."""
    if config.layout is Layout.disaggregated:
        return 0
    return config.learner.num_ranks // config.rollout.tensor_parallel_size


def shared_ranks(config: RunConfig, worker: int) -> range:
    """Return the learner ranks whose GPUs a rollout worker shares, none if it has its own."""
    if worker >= num_sharing(config):
        return range(0)
    size = config.rollout.tensor_parallel_size
    return range(worker * size, (worker + 1) * size)


def weight_backend(config: RunConfig, worker: int) -> str:
    """Return how weights reach a rollout worker, where the recipe says `auto` too."""
    if config.weights.backend is not WeightBackend.auto:
        return config.weights.backend.value
    if not config.rollout.num_gpus:
        return WeightBackend.shm.value
    shares = worker < num_sharing(config)
    return (WeightBackend.ipc if shares else WeightBackend.nccl).value


def problems(config: RunConfig) -> Iterator[str]:
    """Yield why a layout cannot be."""
    yield from _transports(config)
    if config.layout is not Layout.disaggregated:
        yield from _counts(config)
        yield from _turns(config)
        yield from _pipelines(config)
        yield from _places(config)


def _transports(config: RunConfig) -> Iterator[str]:
    backend, layout = config.weights.backend, config.layout
    if backend is WeightBackend.ipc and layout is not Layout.colocated:
        yield (
            "weights.backend=ipc goes through the memory of a GPU that engine and learner share, "
            f"and with layout={layout.value} not all do: use auto, or layout=colocated"
        )
    if backend is WeightBackend.nccl and layout is not Layout.disaggregated:
        yield (
            "weights.backend=nccl needs a GPU for each process, and with "
            f"layout={layout.value} engines share those of learner ranks: use auto"
        )


def _counts(config: RunConfig) -> Iterator[str]:
    ranks, workers = config.learner.num_ranks, config.rollout.num_workers
    size, layout = config.rollout.tensor_parallel_size, config.layout.value
    if config.layout is Layout.colocated and workers * size != ranks:
        yield (
            f"layout=colocated: rollout.num_workers={workers} x rollout.tensor_parallel_size={size}"
            f" = {workers * size} must equal learner.num_ranks={ranks}, for each engine shares the "
            "GPUs of as many ranks as it is wide: change one of them, or use layout=hybrid for "
            "more workers"
        )
    if ranks % size:
        yield (
            f"layout={layout}: learner.num_ranks={ranks} must be divisible by "
            f"rollout.tensor_parallel_size={size}, for an engine shares the GPUs of {size} ranks"
        )
    elif config.layout is Layout.hybrid and workers <= ranks // size:
        yield (
            f"layout=hybrid: learner.num_ranks={ranks} / rollout.tensor_parallel_size={size} = "
            f"{ranks // size} workers share the learner's GPUs, and rollout.num_workers={workers} "
            "leaves none with GPUs of its own: use more, or layout=colocated"
        )
    each, whole = config.learner.num_gpus, config.rollout.num_gpus
    if each not in (0, 1) or whole != size * each:
        yield (
            f"layout={layout}: learner.num_gpus={each:g} must be 1 (0 on CPU), and "
            f"rollout.num_gpus={whole:g} must be rollout.tensor_parallel_size={size} times that: "
            "an engine has just the GPUs that it shares"
        )


def _turns(config: RunConfig) -> Iterator[str]:
    if config.mode is not Mode.sync:
        yield (
            f"layout={config.layout.value} has engines sleep while the learner uses their GPUs, and"
            f" mode={config.mode.value} would sample meanwhile: use mode=sync, or "
            "layout=disaggregated"
        )
    least, sharing = config.rollout.min_workers, num_sharing(config)
    if least is not None and least < sharing:
        yield (
            f"rollout.min_workers={least}: the first {sharing} workers share the GPUs of learner "
            f"ranks and are there from the start: use {sharing} or more, or null"
        )


def _pipelines(config: RunConfig) -> Iterator[str]:
    if config.rollout.pipeline_parallel_size > 1:
        yield (
            f"layout={config.layout.value} and rollout.pipeline_parallel_size="
            f"{config.rollout.pipeline_parallel_size}: engines that share GPUs are tensor-parallel "
            "only; use rollout.tensor_parallel_size, or layout=disaggregated"
        )


def _places(config: RunConfig) -> Iterator[str]:
    rollout, learner, size = config.rollout, config.learner, config.rollout.tensor_parallel_size
    if learner.placement is Placement.strict_spread and size > 1:
        yield (
            "learner.placement=strict_spread puts each rank on a node of its own, and "
            f"rollout.tensor_parallel_size={size} makes {size} ranks share theirs with an engine "
            f"on one node: use spread, or layout=disaggregated"
        )
    if config.layout is not Layout.colocated:
        return
    if rollout.placement not in (Placement.pack, learner.placement):
        yield (
            f"rollout.placement={rollout.placement.value} has no effect with layout=colocated, "
            "where engines lie with learner ranks: set learner.placement instead"
        )
    if rollout.node_labels and rollout.node_labels != learner.node_labels:
        yield (
            f"rollout.node_labels={dict(rollout.node_labels)} have no effect with "
            "layout=colocated, where engines lie with learner ranks: set learner.node_labels "
            "instead"
        )
