"""What a policy's attention may not look at, and what it does in a narrow dtype on a CPU."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlpost.config import load
from rlpost.learning import TokenPolicy
from rlpost.models import load_policy, load_tokenizer, prepare_model, save_policy

TINY = (
    "model.scratch={num_layers: 2, hidden_size: 64, intermediate_size: 64, num_heads: 2, "
    "num_kv_heads: 1}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare_model(load("quickstart", [TINY]), tmp_path_factory.mktemp("model") / "m")


def policy(folder, dtype):
    return load_policy(load("quickstart", [TINY, f"model.dtype={dtype}"]), folder)


def batch(padding):
    """Return three sequences, padded on the right with a token."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([12, 3, 7])
    mask = torch.arange(12)[None] < lengths[:, None]
    ids = torch.randint(2, 90, (3, 12), generator=generator)
    return torch.where(mask, ids, padding), mask, mask


def results(model, padding=0):
    module = TokenPolicy(model, 1.0)
    module.zero_grad()
    logprobs, entropy = module(*batch(padding))
    logprobs.float().square().sum().backward()
    gradient = torch.cat([p.grad.float().flatten() for p in module.parameters()])
    return logprobs.detach(), entropy, gradient


def test_what_stands_in_the_padding_changes_nothing(folder):
    model = policy(folder, "float32")
    for one, other in zip(results(model, padding=0), results(model, padding=77), strict=True):
        assert torch.equal(one, other)


def test_logprobs_are_those_of_a_model_that_is_told_the_mask(folder):
    ids, mask, _ = batch(padding=0)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        scores = plain(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    expected = scores[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].masked_fill(~mask[:, 1:], 0.0)
    logprobs, *_ = results(policy(folder, "float32"))
    torch.testing.assert_close(logprobs[:, 1:], expected)


def test_a_narrow_policy_attends_in_float32(folder):
    seen = []
    inner = torch.nn.functional.scaled_dot_product_attention
    with pytest.MonkeyPatch.context() as patch:

        def noted(query, *others, **settings):
            seen.append(query.dtype)
            return inner(query, *others, **settings)

        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
        narrow = results(policy(folder, "bfloat16"))
    exact = results(policy(folder, "float32"))
    assert seen == [torch.float32] * 2
    torch.testing.assert_close(narrow[0], exact[0], atol=0.02, rtol=0.02)
    cosine = torch.nn.functional.cosine_similarity(narrow[2], exact[2], dim=0)
    assert float(cosine) > 0.999


def test_the_attention_is_no_part_of_what_is_saved(folder, tmp_path):
    config = load("quickstart", [TINY, "model.dtype=bfloat16"])
    model = policy(folder, "bfloat16")
    save_policy(model, dict(model.named_parameters()), load_tokenizer(config), tmp_path / "export")
    assert "rlpost" not in (tmp_path / "export/config.json").read_text()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert loaded.config._attn_implementation == "sdpa"
