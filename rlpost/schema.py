"""The schema of a run: every field that a recipe or an override may set.

Values live in `recipes/`; here are types, defaults that hold for any recipe, and what each field
means. `rlpost.config.load` composes, converts and checks them.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from rlpost.choices import (
    Action,
    Advantage,
    Best,
    Correction,
    Dtype,
    InFlight,
    KLEstimator,
    KLIn,
    Layout,
    LoraTransfer,
    LrSchedule,
    Mode,
    Offload,
    OldLogprobs,
    OnStall,
    OnTimeout,
    Placement,
    Reduction,
    WeightBackend,
)


@dataclass(kw_only=True)
class ObjectiveConfig:
    """Base of the ratio-control objectives' hyperparameters; see `rlpost.objectives`."""

    name: str = "???"


@dataclass(kw_only=True)
class ScratchModelConfig:
    """A small Qwen2-shaped model made from nothing, for recipes that download no weights."""

    num_layers: int = 4
    hidden_size: int = 128
    intermediate_size: int = 384
    num_heads: int = 4
    num_kv_heads: int = 2
    max_position_embeddings: int = 1024
    tie_word_embeddings: bool = True


@dataclass(kw_only=True)
class LoraConfig:
    """A LoRA adapter, without dropout; `rank=0` trains all weights."""

    rank: int = 0
    alpha: float = 16.0
    target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"]
    )
    transfer: LoraTransfer = LoraTransfer.merged

    @property
    def by_itself(self) -> bool:
        """Whether rollout workers get the adapter alone."""
        return self.rank > 0 and self.transfer is LoraTransfer.adapter


@dataclass(kw_only=True)
class ModelConfig:
    """The policy: a transformers folder or hub name, or `scratch` when `path` is null."""

    path: str | None = None
    tokenizer_path: str | None = None  # null: beside the model, or `characters` for a scratch model
    dtype: Dtype = Dtype.float32
    trust_remote_code: bool = False
    activation_checkpointing: bool = False
    scratch: ScratchModelConfig = field(default_factory=ScratchModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass(kw_only=True)
class TaskConfig:
    """Where prompts and verdicts come from; `kind` is `reasoning_gym`, `dataset` or `custom`."""

    kind: str = "???"
    name: str | None = None  # the reasoning-gym generator, or a label
    path: str | None = None  # custom: package.module:function
    parameters: dict[str, Any] = field(default_factory=dict)
    verifier: str = "???"  # reasoning_gym | math | exact | package.module:function
    prompt_template: str = "{question}"  # {question}, and {any field} of the items' metadata
    system_prompt: str | None = None
    chat_template: bool = False  # render prompts through the tokenizer's chat template


@dataclass(kw_only=True)
class DataConfig:
    """The data set of a `dataset` task: a file, a folder of files, or a hub name."""

    path: str | None = None
    split: str = "train"
    eval_split: str = "test"
    question_column: str = "question"
    answer_column: str = "answer"
    worked_answer_column: str | None = None
    answer_pattern: str | None = None  # regular expression; group 1 of its last match is the answer
    num_train: int | None = None  # null: all
    shuffle: bool = True


@dataclass(kw_only=True)
class SamplingConfig:
    """How rollout responses are drawn while training."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_prompt_tokens: int = 512
    max_response_tokens: int = 512
    allow_biased: bool = False  # permit top_p < 1 or top_k > 0, which bias vLLM's logprobs


@dataclass(kw_only=True)
class RolloutConfig:
    """vLLM workers, each one engine in one actor."""

    num_workers: int = 1
    min_workers: int | None = None  # the run begins with so many, others join later; null: all
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    num_threads: int = 1
    placement: Placement = Placement.pack
    node_labels: dict[str, str] = field(default_factory=dict)  # only on Ray nodes with these
    tensor_parallel_size: int = 1  # processes of an engine that share each layer
    pipeline_parallel_size: int = 1  # as many such groups, each with a part of the layers
    max_model_len: int | None = None  # null: max_prompt_tokens + max_response_tokens
    max_num_seqs: int = 256
    kv_cache_gib: float = 1.0  # on CPU
    gpu_memory_utilization: float = 0.9
    dtype: Dtype | None = None  # null: the policy's
    enforce_eager: bool = True
    in_flight: InFlight = InFlight.keep  # what new weights do to responses being sampled
    start_timeout_s: float = 900.0
    timeout_s: float = 600.0  # one group

    @property
    def num_ranks(self) -> int:
        """How many processes an engine has, on a GPU each where there are GPUs."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


@dataclass(kw_only=True)
class RewardConfig:
    """Verifier workers."""

    num_workers: int = 1
    num_cpus: float = 0.1
    node_labels: dict[str, str] = field(default_factory=dict)  # only on Ray nodes with these
    num_processes: int = 1  # verifications at once in one worker
    timeout_s: float = 10.0  # one verification
    process_memory_gib: float = 8.0  # address space of one process; 0: no limit
    on_timeout: OnTimeout = OnTimeout.drop
    start_timeout_s: float = 900.0


@dataclass(kw_only=True)
class ReferenceConfig:
    """The frozen reference policy; started only when `kl_coef > 0`."""

    num_cpus: float = 0.5
    num_gpus: float = 0.0
    num_threads: int = 1
    node_labels: dict[str, str] = field(default_factory=dict)  # only on Ray nodes with these
    micro_batch_size: int = 32
    start_timeout_s: float = 900.0
    timeout_s: float = 600.0


@dataclass(kw_only=True)
class LearnerConfig:
    """The DeepSpeed group that trains the policy."""

    num_ranks: int = 1
    num_cpus: float = 1.0  # a rank
    num_gpus: float = 0.0  # a rank
    num_threads: int = 1  # a rank
    placement: Placement = Placement.pack
    node_labels: dict[str, str] = field(default_factory=dict)  # only on Ray nodes with these
    zero_stage: int = 0
    micro_batch_size: int = 32  # sequences
    micro_batch_tokens: int | None = None  # instead of it: tokens, padding included
    packing: bool = False  # through the model without padding, end to end in one row
    learning_rate: float = 1e-6
    lr_schedule: LrSchedule = LrSchedule.constant
    warmup_updates: int = 0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_eps: float = 1e-8
    max_grad_norm: float = 1.0
    offload_optimizer: Offload = Offload.none
    offload_parameters: Offload = Offload.none
    start_timeout_s: float = 900.0
    collective_timeout_s: float = 600.0  # how long ranks wait for one another, by gloo or NCCL
    timeout_s: float = 3600.0  # one step


@dataclass(kw_only=True)
class KLConfig:
    """The KL penalty's form; its size is `kl_coef`."""

    estimator: KLEstimator = KLEstimator.k3
    where: KLIn = KLIn.loss


@dataclass(kw_only=True)
class CorrectionConfig:
    """The off-policy correction and its bounds; see `rlpost.corrections`."""

    kind: Correction = Correction.none
    cap: float = 2.0  # tis, tis_seq: the largest weight
    low: float = 0.5  # icepop, seq_mask: what is kept lies between these two
    high: float = 2.0


@dataclass(kw_only=True)
class WeightsConfig:
    """The transfer of weights from the learner to vLLM."""

    backend: WeightBackend = WeightBackend.auto
    bucket_mib: int = 128  # by shm two are on their way at once; a larger tensor is one by itself
    timeout_s: float = 600.0


@dataclass(kw_only=True)
class WarmstartConfig:
    """Supervised steps on the task's worked answers before training; `steps=0` skips them."""

    steps: int = 0
    batch_size: int = 64
    learning_rate: float = 1e-3
    lr_schedule: LrSchedule = LrSchedule.cosine
    warmup_updates: int = 10


@dataclass(kw_only=True)
class EvalConfig:
    """Greedy (temperature 0) or sampled accuracy on held-out prompts; `every=0` is never."""

    every: int = 10
    num_prompts: int = 200
    num_samples: int = 1
    temperature: float = 0.0
    success_reward: float = 1.0  # a response counts as right from this reward on


@dataclass(kw_only=True)
class CheckpointConfig:
    """Checkpoints, written in the background; `every=0` writes none, else the last step has one."""

    every: int = 0
    keep: int = 2  # the newest so many
    best_metric: str | None = None  # and the one where this was best, as eval/<suite>/pass@1
    best: Best = Best.max
    url: str | None = None  # a folder or an fsspec URL; null: run_dir/checkpoints
    timeout_s: float = 3600.0  # to write one
    export_at_end: bool = True


@dataclass(kw_only=True)
class WandbConfig:
    """Weights & Biases; `mode` is `online` or `offline`."""

    enabled: bool = False
    mode: str = "offline"
    project: str = "rlpost"
    entity: str | None = None
    group: str | None = None


@dataclass(kw_only=True)
class TrackingConfig:
    """Where metrics go beside `metrics.jsonl`."""

    wandb: WandbConfig = field(default_factory=WandbConfig)
    tensorboard: bool = False
    rollouts_every: int = 1  # steps between Parquet files of rollouts; 0 writes none


@dataclass(kw_only=True)
class GuardsConfig:
    """What is watched for while a run goes on, and what happens then; see docs/guards.md."""

    steps: int = 5  # in a row, before a collapse or a lack of signal counts as one
    window: int = 40  # steps over which a trend is looked for
    first_ratio: Action = Action.stop
    max_first_ratio_gap: float | None = None  # mean |ratio - 1|; null: 0.01 in float32, else 0.1
    logprob_gap: Action = Action.stop
    max_logprob_gap: float | None = None  # mean |learner - vLLM| of a token on equal weights
    logprob_drift: Action = Action.warn
    max_logprob_drift: float = 3.0  # factor by which the gap may grow within a window
    constant_verifier: Action = Action.warn
    no_signal: Action = Action.warn
    reward_collapse: Action = Action.warn
    min_reward_frac: float = 0.25  # of the best step's mean reward
    entropy_collapse: Action = Action.warn
    min_entropy: float = 0.01  # nats a token
    truncation: Action = Action.warn
    max_truncated_frac: float = 0.5
    biased_sampling: Action = Action.warn
    eval_overlap: Action = Action.warn
    memory_growth: Action = Action.warn
    max_memory_growth_mib: float = 20.0  # a process, a step, through a window
    low_disk: Action = Action.checkpoint
    min_free_gib: float = 1.0


@dataclass(kw_only=True)
class SupervisionConfig:
    """What is done about actors that die or hang; see docs/faults.md."""

    max_restarts: int = 10  # of all actors together within `window_s`; one more ends the run
    window_s: float = 3600.0
    attempts: int = 3  # of one request on other actors, or of learner groups at a first step
    heartbeat_s: float = 10.0  # between questions for a sign of life
    heartbeat_timeout_s: float = 120.0  # without one an actor is killed


@dataclass(kw_only=True)
class WatchdogConfig:
    """What happens when nothing in a run advances any more; see docs/watchdog.md."""

    after_s: float = 300.0  # without progress of any kind; 0 watches nothing
    action: OnStall = OnStall.warn


@dataclass(kw_only=True)
class RayConfig:
    """Which Ray to run on; `address=null` starts one on this machine, bound to loopback."""

    address: str | None = None
    num_cpus: int | None = None  # null: this machine's cores
    num_gpus: int | None = None
    object_store_gib: float = 1.0
    nodes: list[str] = field(default_factory=list)  # names that must have joined before it starts
    nodes_timeout_s: float = 300.0
    placement_timeout_s: float = 60.0
    dashboard: bool = False
    token_auth: bool = True  # refuse a cluster that asks for no token
    interface: str | None = None  # of gloo and NCCL; null: that of the node's address in Ray


@dataclass(kw_only=True)
class RunConfig:
    """One training run, whole."""

    run_dir: str = MISSING
    resume: str = "never"  # auto: from the newest checkpoint of run_dir, or anew; or a checkpoint
    resume_allow_changes: list[str] = field(default_factory=list)  # fields that may; all: any
    seed: int = 0
    steps: int = MISSING
    prompts_per_step: int = MISSING
    group_size: int = 8
    mode: Mode = Mode.sync
    layout: Layout = Layout.disaggregated  # which engines share the learner's GPUs by turns
    max_staleness: int = 1  # async: how many versions older than the learner's a token may be
    oversampling: float | None = None  # async: see rlpost.buffer.BufferPlan
    max_replacements: int = 0  # groups without signal replaced a step (DAPO's dynamic sampling)
    epochs: int = 1
    minibatches: int = 1
    kl_coef: float = 0.0
    advantage: Advantage = Advantage.grpo
    normalize_advantages: bool = False  # reinforce_baseline: divide by the batch's std
    old_logprobs: OldLogprobs = OldLogprobs.recompute
    reduction: Reduction = Reduction.auto
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    kl: KLConfig = field(default_factory=KLConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    warmstart: WarmstartConfig = field(default_factory=WarmstartConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    supervision: SupervisionConfig = field(default_factory=SupervisionConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    @property
    def staleness_bound(self) -> int:
        """How many versions older than the learner's a trained token may be; 0 in `sync`."""
        return 0 if self.mode is Mode.sync else self.max_staleness

    @property
    def max_model_len(self) -> int:
        """The context, in tokens, that a rollout worker is given."""
        needed = self.sampling.max_prompt_tokens + self.sampling.max_response_tokens
        return self.rollout.max_model_len or needed
