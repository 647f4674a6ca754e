"""One training run: its own fields, and a group of fields a subject."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from rlpost.choices import Advantage, Layout, Mode, OldLogprobs, Reduction
from rlpost.schema.cluster import RayConfig
from rlpost.schema.model import ModelConfig, WarmstartConfig
from rlpost.schema.objective import CorrectionConfig, KLConfig, ObjectiveConfig
from rlpost.schema.records import CheckpointConfig, TrackingConfig
from rlpost.schema.roles import (
    LearnerConfig,
    ReferenceConfig,
    RewardConfig,
    RolloutConfig,
    WeightsConfig,
)
from rlpost.schema.task import DataConfig, EvalConfig, SamplingConfig, TaskConfig
from rlpost.schema.watching import GuardsConfig, SupervisionConfig, WatchdogConfig


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
