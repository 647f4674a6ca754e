"""What a recipe will do: the numbers that `rlpost plan` prints."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any

from rlpost.choices import OldLogprobs
from rlpost.placing.seats import ROLES, Seat, seats
from rlpost.placing.sharing import weight_backend
from rlpost.planning.memory import LearnerMemory, learner_memory
from rlpost.planning.nodes import fill_nodes
from rlpost.planning.shape import ITEM_BYTES, PolicyShape, num_buckets, policy_shape
from rlpost.schema import RunConfig

_ENGINE_RESERVE = 2 * 2**30  # about what vLLM sets aside for activations and graphs


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """What a node has; `gpu_gib` of one GPU, `host_gib` of the node. `here`: it is this machine."""

    num_cpus: float
    num_gpus: float
    gpu_gib: float
    host_gib: float
    here: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A step's arithmetic; a micro-batch's tokens are the most that it can hold."""

    prompts: int
    group_size: int
    sequences: int
    minibatches: int
    epochs: int
    updates: int
    sequences_per_update: int
    ranks: int
    sequences_per_rank: int
    micro_batches: int
    micro_batch_tokens: int
    longest_sequence: int
    passes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """An inference engine's KV cache, in bytes and tokens, and the sequences that fit in it.

    `full_sequences` are of the longest length that the recipe allows; `wanted` is what a worker is
    asked to sample at once.
    """

    kv_bytes_per_token: int
    kv_bytes: int
    kv_tokens: int
    full_sequences: int
    slots: int
    wanted: int
    weight_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """Engines on the GPUs of learner ranks: how many, and both's bytes on one of those GPUs.

    A rank holds `states` beside an engine that is awake, `peak` beside one that sleeps. On a CPU
    nothing is freed by sleeping, and `engine` is None. `more_cpus` are those that an engine asks
    for beyond its ranks'.
    """

    engines: int
    ranks_each: int
    more_cpus: float
    states: int
    peak: int
    engine: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One publication of the weights to every rollout worker."""

    num_bytes: int
    num_tensors: int
    num_buckets: int
    bucket_bytes: int
    backend: str
    part: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a job will do; `nodes` are the actors of each node by role.

    `actors` are those with a place of their own; those in the learner's are in `shared`.
    """

    shape: PolicyShape
    batch: Batch
    learner: LearnerMemory
    engine: Engine
    transfer: Transfer
    shared: Shared | None
    actors: Mapping[str, Mapping[str, float]]
    nodes: Sequence[Mapping[str, int]]
    machines: Machines
    learner_room_bytes: int
    warnings: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        """Return plain values; of the tensors to transfer only their number."""
        values = asdict(self)
        del values["shape"]["transfers"]
        return values


def make_plan(config: RunConfig, machines: Machines) -> Plan:
    """Return the plan of a recipe on nodes like these.

    Raises:
        ConfigError: the model's configuration cannot be read.
    """
    from rlpost.planning.warnings import warnings

    shape = policy_shape(config)
    batch = _batch(config)
    placed = seats(config, ROLES)
    learner = learner_memory(config, shape, micro_tokens=batch.micro_batch_tokens)
    plan = Plan(
        shape=shape,
        batch=batch,
        learner=learner,
        engine=_engine(config, shape, machines),
        transfer=_transfer(config, shape),
        shared=_shared(config, learner, machines, placed),
        actors=_actors(seat for seat in placed if not seat.shares),
        nodes=fill_nodes(placed, machines.num_cpus, machines.num_gpus),
        machines=machines,
        learner_room_bytes=_learner_room(config, machines),
    )
    return replace(plan, warnings=tuple(warnings(config, plan)))


def _batch(config: RunConfig) -> Batch:
    learner = config.learner
    sequences = config.prompts_per_step * config.group_size
    per_rank = sequences // config.minibatches // learner.num_ranks
    longest = config.sampling.max_prompt_tokens + config.sampling.max_response_tokens
    updates = config.minibatches * config.epochs
    if learner.micro_batch_tokens is None:
        size = min(learner.micro_batch_size, per_rank)
        micro_batches, tokens = ceil(per_rank / learner.micro_batch_size), size * longest
    else:
        most = ceil(per_rank / max(1, learner.micro_batch_tokens // longest))
        micro_batches, tokens = most, min(learner.micro_batch_tokens, per_rank * longest)
    recompute = updates > 1 and config.old_logprobs is OldLogprobs.recompute
    return Batch(
        prompts=config.prompts_per_step,
        group_size=config.group_size,
        sequences=sequences,
        minibatches=config.minibatches,
        epochs=config.epochs,
        updates=updates,
        sequences_per_update=sequences // config.minibatches,
        ranks=learner.num_ranks,
        sequences_per_rank=per_rank,
        micro_batches=micro_batches,
        micro_batch_tokens=tokens,
        longest_sequence=longest,
        passes=config.epochs + recompute / 3,
    )


def _engine(config: RunConfig, shape: PolicyShape, machines: Machines) -> Engine:
    rollout = config.rollout
    item = ITEM_BYTES[(rollout.dtype or config.model.dtype).value]
    split = rollout.num_ranks
    per_token = 2 * shape.num_layers * shape.num_kv_heads * shape.head_size * item
    weights = item * sum(shape.transfers)
    if config.model.lora.by_itself:
        weights = item * shape.num_parameters
    if rollout.num_gpus:
        room = rollout.gpu_memory_utilization * machines.gpu_gib * 2**30 - _ENGINE_RESERVE
        kv_bytes = max(0, int(split * room - weights))
    else:
        kv_bytes = int(rollout.kv_cache_gib * 2**30)
    tokens = kv_bytes // per_token
    ahead = config.staleness_bound + 1
    return Engine(
        kv_bytes_per_token=per_token,
        kv_bytes=kv_bytes,
        kv_tokens=tokens,
        full_sequences=tokens // config.max_model_len,
        slots=rollout.max_num_seqs,
        wanted=ceil(ahead * config.prompts_per_step / rollout.num_workers) * config.group_size,
        weight_bytes=weights,
    )


def _transfer(config: RunConfig, shape: PolicyShape) -> Transfer:
    item, bucket = ITEM_BYTES[config.model.dtype.value], config.weights.bucket_mib * 2**20
    sizes = tuple(item * size for size in shape.transfers)
    alone = config.model.lora.by_itself
    return Transfer(
        num_bytes=sum(sizes),
        num_tensors=len(sizes),
        num_buckets=num_buckets(sizes, bucket),
        bucket_bytes=bucket,
        backend="shm" if alone else " and ".join(_backends(config)),
        part="the adapter" if alone else "all weights",
    )


def _backends(config: RunConfig) -> dict[str, None]:
    """Return the transports of all workers, each once."""
    return dict.fromkeys(weight_backend(config, n) for n in range(config.rollout.num_workers))


def _shared(
    config: RunConfig, learner: LearnerMemory, machines: Machines, placed: Sequence[Seat]
) -> Shared | None:
    sharing = [seat for seat in placed if seat.shares]
    if not sharing:
        return None
    share = config.rollout.gpu_memory_utilization * machines.gpu_gib * 2**30
    return Shared(
        engines=len(sharing),
        ranks_each=config.rollout.num_ranks,
        more_cpus=sharing[0].num_cpus,
        states=sum(learner.states.values()),
        peak=learner.peak,
        engine=int(share) if config.rollout.num_gpus else None,
    )


def _actors(placed: Iterable[Seat]) -> dict[str, dict[str, float]]:
    actors: dict[str, dict[str, float]] = {}
    for seat in placed:
        row = actors.setdefault(
            seat.role, {"count": 0, "num_cpus": seat.num_cpus, "num_gpus": seat.num_gpus}
        )
        row["count"] += 1
    return actors


def _learner_room(config: RunConfig, machines: Machines) -> int:
    """Return the bytes that a rank may use: its GPU's, or its share of the machine's memory."""
    if config.learner.num_gpus:
        return int(machines.gpu_gib * 2**30)
    return int(machines.host_gib * 2**30)
