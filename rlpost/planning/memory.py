"""Memory of one learner rank, part by part, as DeepSpeed and our own code hold it."""

from collections.abc import Mapping
from dataclasses import dataclass

from rlpost.choices import Dtype, Offload
from rlpost.learning import zero_stage
from rlpost.planning.shape import ITEM_BYTES, PolicyShape
from rlpost.schema import RunConfig

MASTER, MOMENTS = "float32 master weights", "optimiser states"
_MASTER = 4  # bytes of the float32 copy of a parameter that is trained
_MOMENTS = 8  # of Adam's two, float32
_REDUCE_BUCKET = 500_000_000  # elements; DeepSpeed's default `reduce_bucket_size`
_LIVE_PARAMETERS = 1_000_000_000  # that ZeRO 3 keeps gathered; `stage3_max_live_parameters`
_TILE_BYTES = {True: 2**28, False: 2**24}  # of logits, on GPU or not; see rlpost.logprobs


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerMemory:
    """Bytes of a rank: `states` stay, the others come and go within an update.

    `host` is what offloading puts into the machine's memory, a rank. `peak` is the most that the
    device holds at once: in the backward pass, or in the optimiser's step.
    """

    states: Mapping[str, int]
    gradients: int
    buffers: int
    activations: int
    logprobs: int
    step: int
    host: Mapping[str, int]
    peak: int


def learner_memory(config: RunConfig, shape: PolicyShape, *, micro_tokens: int) -> LearnerMemory:
    """Return the memory of a rank whose micro-batches hold so many tokens, padding included."""
    learner = config.learner
    item = ITEM_BYTES[config.model.dtype.value]
    states = _states(config, shape, item)
    gradients = _gradients(config, shape, item)
    buffers = _buffers(config, shape, item)
    step = _step(config, shape)
    host: dict[str, int] = {}
    if learner.offload_optimizer is Offload.cpu:
        host |= {name: states.pop(name) for name in (MASTER, MOMENTS) if name in states}
        host["float32 gradients"] = _MASTER * shape.num_trained // _ranks(config)
        gradients, step = gradients if zero_stage(config) < 2 else 0, 0
    if learner.offload_parameters is Offload.cpu:
        host["weights"] = states.pop("weights")
    activations = _activations(config, shape, micro_tokens, item)
    logprobs = _logprobs(config, shape, micro_tokens, item)
    passing = activations + logprobs
    if learner.num_gpus or learner.zero_stage == 3:
        passing += buffers
    else:  # touched bit by bit, as activations go
        passing = max(passing, buffers)
    if not zero_stage(config):
        step += gradients
    return LearnerMemory(
        states=states,
        gradients=gradients,
        buffers=buffers,
        activations=activations,
        logprobs=logprobs,
        step=step,
        host=host,
        peak=sum(states.values()) + max(gradients + passing, step),
    )


def _ranks(config: RunConfig) -> int:
    """Return over how many ranks ZeRO spreads things."""
    return config.learner.num_ranks if zero_stage(config) else 1


def _states(config: RunConfig, shape: PolicyShape, item: int) -> dict[str, int]:
    stage, ranks = zero_stage(config), _ranks(config)
    states = {"weights": item * shape.num_parameters // (ranks if stage == 3 else 1)}
    if stage:
        states[MASTER] = _MASTER * shape.num_trained // ranks
    states[MOMENTS] = _MOMENTS * shape.num_trained // ranks
    return states


def _gradients(config: RunConfig, shape: PolicyShape, item: int) -> int:
    """Return what gradients are added up in, float32, and a micro-batch's own in a narrow dtype.

    ZeRO 2 and 3 shard the sum, and let go of a micro-batch's as soon as it is in there.
    """
    if zero_stage(config) >= 2:
        return _MASTER * shape.num_trained // _ranks(config)
    return (_MASTER + (item if item < _MASTER else 0)) * shape.num_trained


def _buffers(config: RunConfig, shape: PolicyShape, item: int) -> int:
    """Return what DeepSpeed communicates through; memory of a CPU counts only once it is used."""
    stage, on_gpu = zero_stage(config), config.learner.num_gpus > 0
    if not stage:
        return 0
    bucket = _REDUCE_BUCKET if on_gpu else min(_REDUCE_BUCKET, shape.num_trained)
    gathered = min(_LIVE_PARAMETERS, shape.num_parameters) if stage == 3 else 0
    return item * (bucket + gathered)


def _step(config: RunConfig, shape: PolicyShape) -> int:
    """Return what the optimiser's step takes beside states and gradients.

    Gradients, of which ZeRO 3 makes a flat copy where they are not of the weights' dtype, and two
    temporary tensors as large as what Adam works on at once: under ZeRO a rank's share, flat; else
    a parameter, or on a GPU all.
    """
    stage = zero_stage(config)
    share = shape.num_trained // _ranks(config)
    at_once = share if stage or config.learner.num_gpus else shape.largest_parameter
    copied = stage == 3 and config.model.dtype is not Dtype.float32
    return 4 * ((share if stage else 0) + (share if copied else 0) + 2 * at_once)


def _activations(config: RunConfig, shape: PolicyShape, tokens: int, item: int) -> int:
    """Return what a forward pass keeps for the backward pass.

    A layer keeps, of each token: two norms' inputs, in float32, normalised values and outputs;
    queries, keys and values, repeated for each head; attention's result; four tensors of the gated
    feed-forward part. Checkpointing keeps a layer's input, and one layer.
    """
    attention = 4 * shape.num_heads * shape.head_size
    norms = 2 * (2 + 4 // item) * shape.hidden_size
    layer = norms + attention + 4 * shape.intermediate_size
    ends = 4 * shape.hidden_size  # embedding, last norm
    layers = shape.num_layers * layer
    if config.model.activation_checkpointing:
        layers = shape.num_layers * shape.hidden_size + layer
    return item * tokens * (layers + ends)


def _logprobs(config: RunConfig, shape: PolicyShape, tokens: int, item: int) -> int:
    """Return what the head keeps: states and their slopes, a few tiles, its gradient in float32."""
    tile = min(_TILE_BYTES[config.learner.num_gpus > 0], 4 * tokens * shape.vocab_size)
    states = tokens * shape.hidden_size * (item + 4)
    gradient = 4 * shape.vocab_size * shape.hidden_size if not config.model.lora.rank else 0
    return 2 * tile + states + gradient
