"""The sizes of a policy, from its configuration alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from rlpost.models import shape_of_policy
from rlpost.schema import RunConfig

ITEM_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyShape:
    """Counts of a policy's parameters and the widths that activations and KV cache depend on.

    A tied head counts once. `largest_parameter` and `largest_module` are counts of elements;
    `transfers` those of each tensor that goes to the rollout workers, in order.
    """

    num_parameters: int
    num_trained: int
    largest_parameter: int
    largest_module: int
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    transfers: tuple[int, ...]


def policy_shape(config: RunConfig) -> PolicyShape:
    """Return the sizes of a recipe's policy.

    Raises:
        ConfigError: its configuration cannot be read.
    """
    model = shape_of_policy(config)
    parameters = dict(model.named_parameters())
    widths = model.config.get_text_config()
    heads = widths.num_attention_heads
    modules = [sum(p.numel() for p in m.parameters(recurse=False)) for m in model.modules()]
    return PolicyShape(
        num_parameters=sum(p.numel() for p in parameters.values()),
        num_trained=sum(p.numel() for p in parameters.values() if p.requires_grad),
        largest_parameter=max(p.numel() for p in parameters.values()),
        largest_module=max(modules),
        num_layers=widths.num_hidden_layers,
        hidden_size=widths.hidden_size,
        intermediate_size=widths.intermediate_size,
        num_heads=heads,
        num_kv_heads=getattr(widths, "num_key_value_heads", None) or heads,
        head_size=getattr(widths, "head_dim", None) or widths.hidden_size // heads,
        vocab_size=widths.vocab_size,
        transfers=tuple(_transfers(parameters, adapter_alone=config.model.lora.by_itself)),
    )


def _transfers(parameters: dict[str, Any], *, adapter_alone: bool) -> Iterator[int]:
    """Yield the size of each tensor that is sent: all but LoRA's, merged, or LoRA's alone."""
    for name, parameter in parameters.items():
        if ("lora_" in name) == adapter_alone:
            yield prod(parameter.shape)


def num_buckets(tensor_bytes: tuple[int, ...], bucket_bytes: int) -> int:
    """Return how many buckets a transfer fills: tensors in order, none of them split."""
    buckets, size = 0, 0
    for one in tensor_bytes:
        if not buckets or (size and size + one > bucket_bytes):
            buckets, size = buckets + 1, 0
        size += one
    return buckets
