"""Attention of a policy in a narrow dtype on a CPU: float32 inside.

PyTorch's backward pass of attention is slower on a CPU in bfloat16 than in float32.
"""

from typing import Any

import torch
from torch import Tensor, nn

_NAME = "rlpost_sdpa"


def attention_name(dtype: str, num_gpus: float) -> str:
    """Return what transformers calls the attention of such a policy, registered with it."""
    if num_gpus or dtype == "float32":
        return "sdpa"
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    return _NAME


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    wide = torch.float32
    output, _ = sdpa_attention_forward(
        module, query.to(wide), key.to(wide), value.to(wide), attention_mask, **settings
    )
    return output.to(query.dtype), None
