"""What will go wrong or waste time in a job, each with a remedy."""

from collections.abc import Iterator

from rlpost.choices import Dtype, Offload, Placement
from rlpost.planning.plan import Plan
from rlpost.schema import RunConfig

_MARGIN = 1.15  # the estimate's own error, and what libraries take


def warnings(config: RunConfig, plan: Plan) -> Iterator[str]:
    """Yield one sentence a problem."""
    yield from _placement(config, plan)
    yield from _learner(config, plan)
    yield from _host(config, plan)
    yield from _engine(config, plan)
    yield from _shared(config, plan)
    yield from _batch(config, plan)


def _placement(config: RunConfig, plan: Plan) -> Iterator[str]:
    machines = plan.machines
    if machines.here and len(plan.nodes) > 1:
        yield (
            f"the actors need {len(plan.nodes)} machines like this one: use fewer or smaller ones "
            "(<role>.num_cpus, num_gpus), or set ray.address to a cluster and plan.node_cpus and "
            "plan.node_gpus to what its nodes have"
        )
    for role, row in plan.actors.items():
        if row["num_cpus"] > machines.num_cpus or row["num_gpus"] > machines.num_gpus:
            yield (
                f"no node can hold a {role} actor of {row['num_cpus']:g} CPUs and "
                f"{row['num_gpus']:g} GPUs: nodes have {machines.num_cpus:g} and "
                f"{machines.num_gpus:g}; lower {role}.num_cpus or num_gpus, or give plan.node_cpus "
                "and plan.node_gpus"
            )
        count, role_config = row["count"], getattr(config, role)
        together = getattr(role_config, "placement", None) is Placement.strict_pack
        if together and count * row["num_gpus"] > machines.num_gpus:
            yield (
                f"{role}.placement=strict_pack puts {count:g} actors x {row['num_gpus']:g} GPUs = "
                f"{count * row['num_gpus']:g} GPUs on one node, and nodes have "
                f"{machines.num_gpus:g}: use {role}.placement=pack"
            )


def _learner(config: RunConfig, plan: Plan) -> Iterator[str]:
    needed, room = plan.learner.peak * _MARGIN, plan.learner_room_bytes
    if needed <= room or not config.learner.num_gpus:
        return
    remedies = []
    if not config.model.activation_checkpointing and plan.learner.activations > needed / 4:
        remedies.append("model.activation_checkpointing=true")
    if config.learner.micro_batch_size > 1 and plan.learner.activations > needed / 4:
        remedies.append(f"learner.micro_batch_size={max(1, config.learner.micro_batch_size // 2)}")
    if config.learner.zero_stage < 3 and config.learner.num_ranks > 1:
        remedies.append(f"learner.zero_stage={3 if config.learner.zero_stage == 2 else 2}")
    if config.learner.zero_stage and config.learner.offload_optimizer is Offload.none:
        remedies.append("learner.offload_optimizer=cpu")
    remedies.append("more learner.num_ranks" if config.learner.zero_stage else "LoRA")
    yield (
        f"a learner rank needs about {_gib(needed)} with a margin of 15%, and its GPU has "
        f"{_gib(room)}: {', or '.join(remedies)}"
    )


def _host(config: RunConfig, plan: Plan) -> Iterator[str]:
    """Compare what lies in a machine's memory with it, on the fullest node."""
    per_rank = sum(plan.learner.host.values())
    per_rank += 0 if config.learner.num_gpus else int(plan.learner.peak * _MARGIN)
    engine = plan.engine
    per_worker = 0 if config.rollout.num_gpus else engine.kv_bytes + 2 * engine.weight_bytes
    room = plan.machines.host_gib * 2**30
    for number, node in enumerate(plan.nodes, 1):
        needed = node.get("learner", 0) * per_rank + node.get("rollout", 0) * per_worker
        if needed > room:
            yield (
                f"node {number} needs about {_gib(needed)} of memory for {node.get('learner', 0)} "
                f"learner ranks and {node.get('rollout', 0)} rollout workers, and has "
                f"{_gib(room)}: a smaller rollout.kv_cache_gib or micro-batch, a higher "
                "learner.zero_stage, or fewer actors a node"
            )
            return


def _engine(config: RunConfig, plan: Plan) -> Iterator[str]:
    engine = plan.engine
    cache = "rollout.gpu_memory_utilization" if config.rollout.num_gpus else "rollout.kv_cache_gib"
    if not engine.full_sequences:
        yield (
            f"the KV cache of {_gib(engine.kv_bytes)} holds {engine.kv_tokens:,} tokens and one "
            f"sequence may have {config.max_model_len:,}: vLLM will not start; raise {cache}, or "
            "rollout.tensor_parallel_size on GPUs"
        )
        return
    busy = min(engine.slots, engine.wanted)
    if engine.full_sequences < busy:
        yield (
            f"{busy:,} sequences may run at once in an engine and its KV cache holds "
            f"{engine.full_sequences:,} of full length: where many are long, vLLM preempts and "
            f"computes anew; raise {cache}, or lower rollout.max_num_seqs"
        )
    if engine.wanted > engine.slots:
        yield (
            f"a worker is asked for {engine.wanted:,} sequences at once and has "
            f"rollout.max_num_seqs={engine.slots:,} slots: the rest waits; raise it, or use more "
            "rollout.num_workers"
        )
    if config.prompts_per_step * (config.staleness_bound + 1) < config.rollout.num_workers:
        yield (
            f"prompts_per_step={config.prompts_per_step} groups leave some of "
            f"{config.rollout.num_workers} rollout workers idle: use fewer, or more prompts"
        )


def _shared(config: RunConfig, plan: Plan) -> Iterator[str]:
    """Compare what lies on a shared GPU while its engine is awake with that GPU."""
    if plan.shared is None or plan.shared.engine is None:
        return
    if plan.shared.ranks_each > plan.machines.num_gpus:
        yield (
            f"an engine shares the GPUs of {plan.shared.ranks_each} learner ranks on one node, and "
            f"nodes have {plan.machines.num_gpus:g}: lower rollout.tensor_parallel_size"
        )
    states, room = plan.shared.states * _MARGIN, plan.machines.gpu_gib * 2**30
    if states + plan.shared.engine <= room:
        return
    left = int(100 * (1 - states / room)) / 100
    remedies = [f"rollout.gpu_memory_utilization={left:g}"] if left > 0 else []
    if config.learner.zero_stage < 3 and config.learner.num_ranks > 1:
        remedies.append(f"learner.zero_stage={3 if config.learner.zero_stage else 1}")
    if config.learner.zero_stage and config.learner.offload_optimizer is Offload.none:
        remedies.append("learner.offload_optimizer=cpu")
    remedies.append("layout=disaggregated")
    share = config.rollout.gpu_memory_utilization
    yield (
        f"on a shared GPU the engine takes {share:g} x {_gib(room)} = {_gib(plan.shared.engine)} "
        f"while the learner's states stay, {_gib(states)} with a margin of 15%: together more "
        f"than it has; use {', or '.join(remedies)}"
    )


def _batch(config: RunConfig, plan: Plan) -> Iterator[str]:
    batch, size = plan.batch, config.learner.micro_batch_size
    if config.learner.micro_batch_tokens is None and size > batch.sequences_per_rank:
        yield (
            f"learner.micro_batch_size={size} is more than the {batch.sequences_per_rank} "
            "sequences that a rank has in an update: it has no further effect"
        )
    wide = config.model.dtype is Dtype.float32  # bfloat16 has float32 master weights in any case
    if wide and config.learner.zero_stage and config.learner.num_ranks == 1:
        yield (
            f"learner.zero_stage={config.learner.zero_stage} shards nothing over one rank and "
            "keeps a second copy of the weights: use learner.zero_stage=0 unless it offloads"
        )


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.0f} MiB"
