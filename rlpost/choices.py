"""Named choices that a recipe may make; their values are what it says."""

from enum import StrEnum


class Dtype(StrEnum):
    """Number formats of weights and activations."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Advantage(StrEnum):
    """Advantage estimators; see `rlpost.advantages`."""

    grpo = "grpo"
    dr_grpo = "dr_grpo"
    rloo = "rloo"
    max_rl = "max_rl"
    gigpo = "gigpo"
    reinforce_baseline = "reinforce_baseline"


class Reduction(StrEnum):
    """How token losses become one number; `auto` takes what the objective's paper uses."""

    auto = "auto"
    token_mean = "token_mean"
    sequence_mean = "sequence_mean"
    constant_length = "constant_length"


class KLEstimator(StrEnum):
    """Estimators of KL(current || reference); see `rlpost.kl`."""

    k1 = "k1"
    k2 = "k2"
    k3 = "k3"


class KLIn(StrEnum):
    """Where the KL penalty enters."""

    loss = "loss"
    reward = "reward"


class OldLogprobs(StrEnum):
    """Which logprobs the ratio starts from: the learner's at the step's start, or vLLM's."""

    recompute = "recompute"
    behavior = "behavior"


class Correction(StrEnum):
    """Off-policy corrections; see `rlpost.corrections`."""

    none = "none"
    tis = "tis"
    tis_seq = "tis_seq"
    icepop = "icepop"
    seq_mask = "seq_mask"


class LrSchedule(StrEnum):
    """Learning-rate schedules after the linear warm-up."""

    constant = "constant"
    cosine = "cosine"
    linear = "linear"


class WeightBackend(StrEnum):
    """How weights reach vLLM; `auto` is `shm` on CPU, `ipc` on a shared GPU, else `nccl`."""

    auto = "auto"
    shm = "shm"
    nccl = "nccl"
    ipc = "ipc"


class OnTimeout(StrEnum):
    """What becomes of a trajectory whose verification ran out of time."""

    drop = "drop"
    zero = "zero"
    fail = "fail"


class Action(StrEnum):
    """What a guard does about what it sees; `checkpoint` stops the run after writing one."""

    none = "none"
    warn = "warn"
    stop = "stop"
    checkpoint = "checkpoint"


class OnStall(StrEnum):
    """What follows the report of a run that stands still; `restart` is for the part that does."""

    warn = "warn"
    restart = "restart"
    stop = "stop"


class LoraTransfer(StrEnum):
    """What of a LoRA policy goes to the rollout workers: the sums, or the adapter alone."""

    merged = "merged"
    adapter = "adapter"


class Best(StrEnum):
    """Which value of a metric is the best."""

    max = "max"
    min = "min"


class Placement(StrEnum):
    """How a role's actors lie on nodes: close together or far apart, if possible or always."""

    pack = "pack"
    spread = "spread"
    strict_pack = "strict_pack"
    strict_spread = "strict_spread"


class Layout(StrEnum):
    """Whose GPUs the engines use: the learner's, by turns; their own; or some these, some those."""

    colocated = "colocated"
    disaggregated = "disaggregated"
    hybrid = "hybrid"


class Offload(StrEnum):
    """Where DeepSpeed keeps optimiser state or parameters that do not fit the device."""

    none = "none"
    cpu = "cpu"


# Written as a call, since `async` is a word of Python's.
Mode = StrEnum("Mode", ["sync", "async"])  # pyrefly: ignore[bad-class-definition]  # that word
Mode.__doc__ = (
    "Whether sampling waits for learning (`sync`), or goes on with weights of a bounded age."
)


class InFlight(StrEnum):
    """What new weights do to responses being sampled: `keep` goes on with them, `wait` ends them.

    `keep` freezes the requests, recomputes what they hold with the new weights, and samples on.
    """

    keep = "keep"
    wait = "wait"
