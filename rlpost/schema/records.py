"""What a run records: checkpoints, metrics and rollouts."""

from dataclasses import dataclass, field

from rlpost.choices import Best


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
