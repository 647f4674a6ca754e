"""Sequences that share a row, against the same sequences padded."""

import pytest
import torch
from transformers import masking_utils

from rlpost.config import load
from rlpost.errors import ConfigError
from rlpost.learning import TokenPolicy
from rlpost.models import load_policy, prepare_model
from rlpost.objective_configs import objective_configs
from rlpost.objectives import ObjectiveInputs, build
from rlpost.reduction import token_weights

TINY = (
    "model.scratch={num_layers: 2, hidden_size: 64, intermediate_size: 64, num_heads: 2, "
    "num_kv_heads: 1}"
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    config = load("quickstart", [TINY, "ray.num_cpus=8"])
    model = load_policy(config, prepare_model(config, tmp_path_factory.mktemp("model") / "m"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batch():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([9, 1, 6, 4])
    attention_mask = torch.arange(9)[None] < lengths[:, None]
    ids = torch.randint(2, 250, (4, 9), generator=generator)
    loss_mask = attention_mask & (torch.rand(4, 9, generator=generator) < 0.7)
    return ids, attention_mask, loss_mask


def results(policy, packing):
    module = TokenPolicy(policy, 1.0, packing=packing)
    module.zero_grad()
    logprobs, entropy = module(*batch())
    logprobs.square().sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    return logprobs.detach(), entropy, gradient


def test_packed_and_padded_give_the_same_logprobs_and_gradients(policy):
    padded, packed = results(policy, packing=False), results(policy, packing=True)
    torch.testing.assert_close(packed[:2], padded[:2])
    assert float((packed[2] - padded[2]).norm() / padded[2].norm()) < 1e-6


@pytest.mark.parametrize("name", sorted(set(objective_configs) - {"custom"}))
def test_every_objective_has_the_same_loss_and_gradient_packed_and_padded(policy, name):
    ids, attention_mask, loss_mask = batch()
    generator = torch.Generator().manual_seed(1)
    loss_mask[:, 0] = False
    with torch.no_grad():
        old = TokenPolicy(policy, 1.0)(ids, attention_mask, loss_mask)[0]
    old = old + 0.3 * torch.randn(old.shape, generator=generator)
    advantages = torch.randn(len(ids), generator=generator)
    found = []
    for packing in (False, True):
        module = TokenPolicy(policy, 1.0, packing=packing)
        module.zero_grad()
        logprobs, _ = module(ids, attention_mask, loss_mask)
        inputs = ObjectiveInputs(
            logprobs=logprobs,
            old_logprobs=old,
            advantages=advantages,
            loss_mask=loss_mask,
            weights=token_weights("sequence_mean", loss_mask),
        )
        loss = build(name)(inputs, step=1).loss
        loss.backward()
        gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        found.append((loss.item(), torch.cat(gradients)))
    (loss, gradient), (packed_loss, packed) = found
    assert packed_loss == pytest.approx(loss, rel=1e-5, abs=1e-7)
    assert float(gradient.norm()) > 0
    assert float((packed - gradient).norm() / gradient.norm()) < 1e-5


def test_the_check_passes_where_attention_knows_sequences(policy):
    module = TokenPolicy(policy, 1.0, packing=True)
    module.check_packing()
    assert module.packing


def test_attention_that_sees_across_sequences_is_refused(policy, monkeypatch):
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda *_, **__: None)
    with pytest.raises(ConfigError, match=r"learner\.packing=true changes this model's logprobs"):
        TokenPolicy(policy, 1.0, packing=True).check_packing()
