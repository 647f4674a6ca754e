"""How the losses of a minibatch's tokens become one number: each token's share in it."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlpost.errors import ConfigError

MODES = ("token_mean", "sequence_mean", "constant_length")


def token_weights(
    mode: str, loss_mask: Bool[Tensor, "B T"], max_response_tokens: int | None = None
) -> Float[Tensor, "B T"]:
    """Return weights whose weighted sum of token losses is the reduced loss, in float64.

    `token_mean`: 1 / all trained tokens. `sequence_mean`: 1 / (sequences * T_i).
    `constant_length`: 1 / (sequences * max_response_tokens). Count the whole minibatch, over all
    ranks, in one call: micro-batches then add. A sequence without trained tokens does not count.

    Raises:
        ConfigError: an unknown mode, or `constant_length` without a length.
    """
    mask = loss_mask.to(torch.float64)
    lengths = mask.sum(-1, keepdim=True)
    num_sequences = (lengths > 0).sum().clamp(min=1)
    if mode == "token_mean":
        return mask / mask.sum().clamp(min=1)
    if mode == "sequence_mean":
        return mask / lengths.clamp(min=1) / num_sequences
    if mode == "constant_length":
        if max_response_tokens is None or max_response_tokens < 1:
            raise ConfigError(
                "reduction=constant_length needs max_response_tokens above 0, "
                f"got {max_response_tokens}: set sampling.max_response_tokens"
            )
        return mask / (num_sequences * max_response_tokens)
    raise ConfigError(f"reduction={mode}: no such reduction; available: {', '.join(MODES)}")
