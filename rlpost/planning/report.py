"""A plan as a person reads it."""

from rlpost.planning.plan import Plan
from rlpost.schema import RunConfig


def as_text(config: RunConfig, plan: Plan) -> str:
    """Return a plan in words."""
    sections = {
        "batch": _batch(config, plan),
        "learner": _learner(config, plan),
        "engines": [*_engines(config, plan), *_shared(plan)],
        "weights": _weights(plan),
        "actors": _actors(plan),
        "warnings": [f"* {text}" for text in plan.warnings] or ["none"],
    }
    blocks = [
        "\n".join([name, *(f"  {line}" for line in lines)]) for name, lines in sections.items()
    ]
    return "\n\n".join(blocks) + "\n"


def _batch(config: RunConfig, plan: Plan) -> list[str]:
    batch = plan.batch
    micro = (
        f"of {config.learner.micro_batch_size} sequences"
        if config.learner.micro_batch_tokens is None
        else f"of up to {config.learner.micro_batch_tokens:,} tokens"
    )
    lines = [
        (
            f"{batch.prompts:,} prompts x group of {batch.group_size} = {batch.sequences:,} "
            f"sequences a step, {config.steps:,} steps"
        ),
        (
            f"{batch.minibatches} minibatches x {batch.epochs} epochs = {batch.updates} updates a "
            f"step, each of {batch.sequences_per_update:,} sequences"
        ),
        (
            f"over {batch.ranks} ranks: {batch.sequences_per_rank:,} sequences a rank, in "
            f"{batch.micro_batches} micro-batches {micro}"
        ),
        (
            f"a sequence has up to {batch.longest_sequence:,} tokens, a micro-batch up to "
            f"{batch.micro_batch_tokens:,}"
        ),
    ]
    if batch.passes > batch.epochs:
        lines.append("one more forward pass a step, for the logprobs that the ratio starts from")
    return lines


def _learner(config: RunConfig, plan: Plan) -> list[str]:
    shape, memory, learner = plan.shape, plan.learner, config.learner
    trained = "all" if shape.num_trained == shape.num_parameters else f"{shape.num_trained:,}"
    room = "its GPU has" if learner.num_gpus else "the machine has"
    rows = {**memory.states, "gradients": memory.gradients}
    rows |= {"communication buffers": memory.buffers, "activations": memory.activations}
    rows |= {"logprobs": memory.logprobs, "optimiser's step": memory.step}
    lines = [
        (
            f"{shape.num_parameters:,} parameters in {config.model.dtype.value}, {trained} "
            f"trained; ZeRO stage {learner.zero_stage} over {learner.num_ranks} ranks"
        ),
        f"a rank holds at most {size_of(memory.peak)}; {room} {size_of(plan.learner_room_bytes)}",
    ]
    lines += [f"  {name:<24}{size_of(size):>10}" for name, size in rows.items() if size]
    lines += [
        f"  {name:<24}{size_of(size):>10}  in the machine's memory"
        for name, size in memory.host.items()
    ]
    return lines


def _engines(config: RunConfig, plan: Plan) -> list[str]:
    engine = plan.engine
    return [
        (
            f"{config.rollout.num_workers:,} workers, each with {size_of(engine.weight_bytes)} of "
            f"weights and a KV cache of {size_of(engine.kv_bytes)}"
        ),
        (
            f"{size_of(engine.kv_bytes_per_token)} a token: {engine.kv_tokens:,} tokens, or "
            f"{engine.full_sequences:,} sequences of {config.max_model_len:,}; "
            f"{engine.slots:,} slots"
        ),
        f"a worker is asked for up to {engine.wanted:,} sequences at once",
    ]


def _shared(plan: Plan) -> list[str]:
    if (shared := plan.shared) is None:
        return []
    whose = "a learner rank" if shared.ranks_each == 1 else f"{shared.ranks_each} learner ranks"
    more = f", and have {shared.more_cpus:g} CPUs more" if shared.more_cpus else ""
    if shared.engine is None:
        return [f"{shared.engines:,} share the cores of {whose}, by turns{more}"]
    return [
        f"{shared.engines:,} share the GPUs of {whose}, by turns{more}; on each GPU:",
        (
            f"  an engine awake with {size_of(shared.engine)} beside a rank's states of "
            f"{size_of(shared.states)}, or asleep beside a rank that holds {size_of(shared.peak)}"
        ),
    ]


def _weights(plan: Plan) -> list[str]:
    transfer = plan.transfer
    return [
        (
            f"{transfer.part}: {size_of(transfer.num_bytes)} in {transfer.num_tensors} tensors, "
            f"{transfer.num_buckets} buckets of up to {size_of(transfer.bucket_bytes)}, by "
            f"{transfer.backend}"
        )
    ]


def _actors(plan: Plan) -> list[str]:
    machines = plan.machines
    lines = [
        f"{row['count']:,.0f} {role}: {row['num_cpus']:g} CPUs, {row['num_gpus']:g} GPUs each"
        for role, row in plan.actors.items()
    ]
    lines.append(
        f"on nodes of {machines.num_cpus:g} CPUs, {machines.num_gpus:g} GPUs: {len(plan.nodes)}"
    )
    for number, node in enumerate(plan.nodes[:8], 1):
        held = ", ".join(f"{count} {role}" for role, count in node.items())
        lines.append(f"  node {number}: {held}")
    if len(plan.nodes) > 8:
        lines.append(f"  and {len(plan.nodes) - 8} more")
    return lines


def size_of(size: float) -> str:
    """Return bytes in the largest unit that leaves a number of 1 or more."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"
