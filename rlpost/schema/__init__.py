"""The schema of a run: every field that a recipe or an override may set.

Values live in `recipes/`; here are types, defaults that hold for any recipe, and what each field
means. `rlpost.config.load` composes and converts them, `rlpost.checks` has what they may not be.
"""

from rlpost.schema.cluster import RayConfig
from rlpost.schema.model import LoraConfig, ModelConfig, ScratchModelConfig, WarmstartConfig
from rlpost.schema.objective import CorrectionConfig, KLConfig, ObjectiveConfig
from rlpost.schema.records import CheckpointConfig, TrackingConfig, WandbConfig
from rlpost.schema.roles import (
    LearnerConfig,
    ReferenceConfig,
    RewardConfig,
    RolloutConfig,
    WeightsConfig,
)
from rlpost.schema.run import RunConfig
from rlpost.schema.task import DataConfig, EvalConfig, SamplingConfig, TaskConfig
from rlpost.schema.watching import GuardsConfig, SupervisionConfig, WatchdogConfig

__all__ = [
    "CheckpointConfig",
    "CorrectionConfig",
    "DataConfig",
    "EvalConfig",
    "GuardsConfig",
    "KLConfig",
    "LearnerConfig",
    "LoraConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "RayConfig",
    "ReferenceConfig",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "SamplingConfig",
    "ScratchModelConfig",
    "SupervisionConfig",
    "TaskConfig",
    "TrackingConfig",
    "WandbConfig",
    "WarmstartConfig",
    "WatchdogConfig",
    "WeightsConfig",
]
