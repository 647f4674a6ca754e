"""The policy: its weights, its adapter, and the supervised steps before training."""

from dataclasses import dataclass, field

from rlpost.choices import Dtype, LoraTransfer, LrSchedule


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
class WarmstartConfig:
    """Supervised steps on the task's worked answers before training; `steps=0` skips them."""

    steps: int = 0
    batch_size: int = 64
    learning_rate: float = 1e-3
    lr_schedule: LrSchedule = LrSchedule.cosine
    warmup_updates: int = 10
