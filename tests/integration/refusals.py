"""Learner ranks spoiled on purpose, and what they say then; imported by their processes too."""

import json

import pytest
import torch
from safetensors.torch import load_file

from rlpost.errors import GuardError


def drop(rank):
    """Let the model drop attention at random, as one does that was left in training mode."""
    for module in rank.policy.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    rank.policy.train()


def overflowing(rank):
    """Let the gradient of a finite loss overflow on its way back through the model."""
    norm = rank.policy.get_decoder().norm
    norm.register_full_backward_hook(lambda _, grads, __: tuple(g * torch.inf for g in grads))


def overflowing_sum(rank):
    """Spoil a gradient after it was looked at, as the sum over ranks may."""
    next(iter(rank.engine.module.parameters())).register_hook(lambda g: g * torch.inf)


async def refused(learner, batches, spoil, run_dir):
    """Return an update's error, the weights after it, and the files that were written of it."""
    if spoil is not None:
        await learner.actors[-1].handle.__ray_call__.remote(spoil)
    with pytest.raises(GuardError) as caught:
        await learner.update(batches, 7)
    await learner.export(run_dir / "export")
    weights = load_file(run_dir / "export" / "model.safetensors")
    written = sorted((run_dir / "nonfinite").glob("step_000007-*"))
    rows = [json.loads(line) for path in written for line in path.read_text().splitlines()]
    for path in written:
        path.unlink()
    return str(caught.value), weights, [path.name for path in written], rows
