"""The actors of a run by role, what each asks for, and how weights go between them."""

from dataclasses import dataclass, field

from rlpost.choices import Dtype, InFlight, LrSchedule, Offload, OnTimeout, Placement, WeightBackend


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
    zero_stage: int = 0  # bfloat16 takes at least 1, for gradients that add up in float32
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
class WeightsConfig:
    """The transfer of weights from the learner to vLLM."""

    backend: WeightBackend = WeightBackend.auto
    bucket_mib: int = 128  # by shm two are on their way at once; a larger tensor is one by itself
    timeout_s: float = 600.0
