"""The policy that the learner trains, on a GPU."""

import pytest
import torch

from rlpost.config import load
from rlpost.learning import TokenPolicy
from rlpost.models import load_policy, prepare_model

pytestmark = pytest.mark.gpu

TINY = (
    "model.scratch={num_layers: 2, hidden_size: 64, intermediate_size: 128, num_heads: 2, "
    "num_kv_heads: 1}"
)


def policy_and_batch(folder, *words):
    config = load("quickstart", [TINY, "ray.num_cpus=8", *words])
    model = load_policy(config, prepare_model(config, folder))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    attention_mask = torch.arange(40)[None] < torch.tensor([40, 3, 25, 31])[:, None]
    ids = torch.randint(2, 250, (4, 40), generator=generator)
    loss_mask = attention_mask & (torch.rand(4, 40, generator=generator) < 0.7)
    return model, (ids, attention_mask, loss_mask)


def logprobs_and_gradient(model, batch, place, *, packing=False):
    module = TokenPolicy(model.to(place), 1.0, packing=packing)
    module.zero_grad()
    logprobs, _ = module(*(tensor.to(place) for tensor in batch))
    logprobs.square().sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    return logprobs.detach().float().cpu(), gradient.float().cpu()


def relative(one, other):
    return float((one - other).norm() / other.norm())


def test_a_float32_policy_on_a_gpu_is_that_on_a_cpu(device, tmp_path):
    model, batch = policy_and_batch(tmp_path / "model")
    expected = logprobs_and_gradient(model, batch, "cpu")
    for packing in (False, True):
        found = logprobs_and_gradient(model, batch, device, packing=packing)
        torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=1e-4)
        assert relative(found[1], expected[1]) < 1e-4


def test_a_bfloat16_policy_stays_within_its_rounding(device, tmp_path):
    model, batch = policy_and_batch(tmp_path / "model", "model.dtype=bfloat16")
    narrow = logprobs_and_gradient(model, batch, device)
    wide = logprobs_and_gradient(model.float(), batch, device)
    trained = batch[2]
    assert float((narrow[0] - wide[0])[trained].abs().mean()) < 0.02
    assert relative(narrow[1], wide[1]) < 0.05
