"""The policy and its tokenizer: loaded, made from nothing, and written to disk."""

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from rlpost.atomic import atomic_folder
from rlpost.attention import attention_name
from rlpost.errors import ConfigError, ResourceError
from rlpost.schema import RunConfig

CHARACTERS = "characters"
_GLOBAL_RNG = Lock()  # torch initialises from one state for all threads


def load_tokenizer(config: RunConfig) -> Any:
    """Return the policy's tokenizer.

    Raises:
        ConfigError: there is none, or it has no end-of-sequence token.
    """
    source = config.model.tokenizer_path or config.model.path
    if source is None or source == CHARACTERS:
        from rlpost.characters import character_tokenizer

        return character_tokenizer()
    from transformers import AutoTokenizer

    trust = config.model.trust_remote_code
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=trust)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no tokenizer in {source}: set model.tokenizer_path: {error}") from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"the tokenizer of {source} has no end-of-sequence token, so no response could end: "
            "set eos_token in its tokenizer_config.json"
        )
    return tokenizer


def prepare_model(config: RunConfig, folder: Path) -> Path:
    """Return the folder or name to load the policy from; a scratch model is made in `folder`.

    Raises:
        ConfigError: the scratch model's shape is impossible.
    """
    if config.model.path is not None:
        return Path(config.model.path)
    from transformers import Qwen2ForCausalLM

    tokenizer = load_tokenizer(config)
    with _GLOBAL_RNG, torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Qwen2ForCausalLM(_scratch_config(config, tokenizer))
    save_policy(model, dict(model.named_parameters()), tokenizer, folder)
    return folder


def _scratch_config(config: RunConfig, tokenizer: Any) -> Any:
    from transformers import Qwen2Config

    scratch = config.model.scratch
    if scratch.hidden_size % scratch.num_heads:
        raise ConfigError(
            f"model.scratch.hidden_size={scratch.hidden_size} must be divisible by "
            f"model.scratch.num_heads={scratch.num_heads}"
        )
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=scratch.hidden_size,
        intermediate_size=scratch.intermediate_size,
        num_hidden_layers=scratch.num_layers,
        num_attention_heads=scratch.num_heads,
        num_key_value_heads=scratch.num_kv_heads,
        max_position_embeddings=scratch.max_position_embeddings,
        tie_word_embeddings=scratch.tie_word_embeddings,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=config.model.dtype.value,
    )


def shape_of_policy(config: RunConfig) -> Any:
    """Return the policy as it is trained, without weights: all its tensors are on `meta`.

    Raises:
        ConfigError: the model's configuration cannot be read, or has no such model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    source, trust = config.model.path, config.model.trust_remote_code
    try:
        if source is None:
            architecture = _scratch_config(config, load_tokenizer(config))
        else:
            architecture = AutoConfig.from_pretrained(source, trust_remote_code=trust)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                architecture,
                dtype=getattr(torch, config.model.dtype.value),
                trust_remote_code=trust,
            )
            return _with_adapter(model, config) if config.model.lora.rank else model
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.path={source}: its configuration cannot be read: name a folder that has its "
            f"config.json, weights are not needed: {str(error).splitlines()[0]}"
        ) from error


def load_policy(config: RunConfig, folder: str | Path, *, trainable: bool = True) -> Any:
    """Return the causal language model of a folder, in the recipe's dtype.

    A LoRA recipe gets its adapter when `trainable`; all other weights are then frozen.
    """
    from transformers import AutoModelForCausalLM

    num_gpus = config.learner.num_gpus if trainable else config.reference.num_gpus
    model = AutoModelForCausalLM.from_pretrained(
        str(folder),
        dtype=getattr(torch, config.model.dtype.value),
        attn_implementation=attention_name(config.model.dtype.value, num_gpus),
        trust_remote_code=config.model.trust_remote_code,
    )
    model.config.use_cache = False
    model.eval()  # dropout would make the first update's ratio differ from 1
    if not trainable:
        return model.requires_grad_(False)
    if config.model.lora.rank:
        model = _with_adapter(model, config)
    if config.model.activation_checkpointing:
        model.train()  # transformers checkpoints only then
        _without_dropout(model)
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def _without_dropout(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0


def _with_adapter(model: Any, config: RunConfig) -> Any:
    """Put LoRA layers into the model, in place, and freeze the rest."""
    from peft import LoraConfig, inject_adapter_in_model

    lora = config.model.lora
    model.requires_grad_(False)
    adapter = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyrefly: ignore[bad-argument-type]  # a ratio's part: any number
        target_modules=list(lora.target_modules),
    )
    return inject_adapter_in_model(adapter, model)


def save_policy(model: Any, state: Mapping[str, Tensor], tokenizer: Any, folder: Path) -> None:
    """Write weights, config and tokenizer as a transformers folder, all at once or not at all.

    Raises:
        ResourceError: the disk does not take them.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    try:
        with atomic_folder(folder, overwrite=True) as temporary:
            save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
            model.config.architectures = [type(model).__name__]  # TRL and others load by it
            model.config.save_pretrained(temporary)
            if model.generation_config is not None:
                model.generation_config.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    except (OSError, SafetensorError) as error:
        raise ResourceError(
            f"the policy could not be written to {folder}: {error}; make room and continue with "
            "resume=auto"
        ) from error
