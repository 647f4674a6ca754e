"""The policy's folder, shape and adapter."""

from collections.abc import Iterator
from pathlib import Path

from rlpost.choices import LoraTransfer
from rlpost.schema import RunConfig

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # vLLM 0.32
MAX_ADAPTER_RANK = 512  # vLLM 0.32


def problems(config: RunConfig) -> Iterator[str]:
    """Yield why there is no such model, or vLLM would not run it."""
    path = config.model.path
    if path is None:
        yield from _scratch(config)
    elif path.startswith((".", "/", "~")):
        folder = Path(path).expanduser()
        if not (folder / "config.json").is_file():
            yield f"model.path={path}: no such model folder (config.json is not in it)"
    yield from _adapter(config)


def _scratch(config: RunConfig) -> Iterator[str]:
    scratch = config.model.scratch
    if scratch.hidden_size % scratch.num_heads:
        yield (
            f"model.scratch.hidden_size={scratch.hidden_size} must be divisible by "
            f"model.scratch.num_heads={scratch.num_heads}"
        )
    if scratch.num_heads % scratch.num_kv_heads:
        yield (
            f"model.scratch.num_heads={scratch.num_heads} must be divisible by "
            f"model.scratch.num_kv_heads={scratch.num_kv_heads}"
        )
    size = scratch.hidden_size // scratch.num_heads
    if config.rollout.num_gpus == 0 and size not in CPU_HEAD_SIZES:
        yield (
            f"model.scratch.hidden_size={scratch.hidden_size} / model.scratch.num_heads="
            f"{scratch.num_heads} = {size} and vLLM's CPU attention has {CPU_HEAD_SIZES}: change "
            "either"
        )


def _adapter(config: RunConfig) -> Iterator[str]:
    lora = config.model.lora
    if lora.rank < 0:
        yield f"model.lora.rank must be 0 (train all weights) or more, got {lora.rank}"
    if lora.transfer is LoraTransfer.adapter and not 1 <= lora.rank <= MAX_ADAPTER_RANK:
        yield (
            "model.lora.transfer=adapter needs model.lora.rank from 1 to "
            f"{MAX_ADAPTER_RANK}, got {lora.rank}: set the rank, or use merged"
        )
