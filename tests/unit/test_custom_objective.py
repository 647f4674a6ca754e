"""A user's own objective: found, tried, validated, and as good as the built-in ones."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from rlpost.config import load
from rlpost.errors import ConfigError
from rlpost.objectives import ObjectiveInputs, build, build_from


def wide_clip(logprobs, old_logprobs, advantages, loss_mask, *, width: float = 0.4):
    if not width > 0:
        raise ValueError("width must be positive")
    ratio = (logprobs - old_logprobs).exp()
    bounded = ratio.clamp(1 - width, 1 + width)
    return -torch.minimum(ratio * advantages, bounded * advantages)


def detached(logprobs, old_logprobs, advantages, loss_mask):
    return logprobs.detach()


def of_sequences(logprobs, old_logprobs, advantages, loss_mask):
    return logprobs.sum(-1)


def needy(logprobs, old_logprobs, advantages, loss_mask, *, width: float):
    return width * logprobs


def short(logprobs):
    return logprobs


@pytest.fixture(autouse=True)
def mine(monkeypatch):
    module = ModuleType("mine")
    for function in (wide_clip, detached, of_sequences, needy, short):
        setattr(module, function.__name__, function)
    monkeypatch.setitem(sys.modules, "mine", module)


def test_it_is_the_built_in_of_the_same_formula():
    logprobs = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outputs = []
    for name, options in (
        ("custom", {"path": "mine:wide_clip", "parameters": {"width": 0.3}}),
        ("clip", {"eps_low": 0.3, "eps_high": 0.3}),
    ):
        leaf = logprobs.clone().requires_grad_()
        output = build(name, **options)(
            ObjectiveInputs(
                logprobs=leaf,
                old_logprobs=logprobs * 0.5,
                advantages=torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64),
                loss_mask=torch.ones(3, 5, dtype=torch.bool),
                weights=torch.full((3, 5), 1 / 15, dtype=torch.float64),
            )
        )
        output.loss.backward()
        outputs.append((output.loss.detach(), leaf.grad, output.metrics.values()))
    torch.testing.assert_close(outputs[0][:2], outputs[1][:2])
    assert outputs[0][2] == pytest.approx(outputs[1][2])


def test_the_example_of_the_documentation_works(monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")
    (example,) = re.findall(
        r"<!-- tested: my_objectives.py -->\n```python\n(.*?)```", text, re.DOTALL
    )
    module = ModuleType("my_objectives")
    exec(example, vars(module))
    monkeypatch.setitem(sys.modules, "my_objectives", module)
    path = "my_objectives:soft_clip"
    overrides = ["objective=custom", f"objective.path={path}", "+objective.parameters.width=0.5"]
    objective = build_from(load("quickstart", overrides).objective)
    assert objective.on_policy_multiplier == pytest.approx(1.0)
    # It is MHPO's modulator by itself.
    far = torch.full((1, 1), 2.0, dtype=torch.float64)
    inputs = ObjectiveInputs(
        logprobs=far, old_logprobs=0 * far, advantages=far, loss_mask=far > 0, weights=far
    )
    expected = build("mhpo", c=0.5, dhp=False)
    torch.testing.assert_close(objective(inputs).loss, expected(inputs).loss)


def test_a_recipe_sets_its_parameters():
    overrides = ["objective=custom", "objective.path=mine:wide_clip"]
    config = load("quickstart", [*overrides, "+objective.parameters.width=0.3"])
    assert config.objective.parameters == {"width": 0.3}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+objective.parameters.widht=1", "no keyword-only parameter widht; available: width"),
        ("+objective.parameters.width=wide", "'wide' of type 'str' could not be converted"),
        ("+objective.parameters.width=-1", "it raised ValueError: width must be positive"),
        ("objective.path=mine:narrow", "mine has no function narrow"),
        ("objective.path=mine", "must have the form package.module:function"),
        ("objective.path=mine:detached", "depend on logprobs"),
        ("objective.path=mine:of_sequences", r"\[B, T\]=\[2, 2\], got \[2\]"),
        ("objective.path=mine:needy", r"needs \+objective.parameters.width"),
        ("objective.path=mine:short", "it raised TypeError"),
    ],
)
def test_what_cannot_work_is_refused_when_the_recipe_is_loaded(override, said):
    overrides = ["objective=custom", "objective.path=mine:wide_clip", override]
    with pytest.raises(ConfigError, match=said) as caught:
        load("quickstart", overrides)
    assert str(caught.value).startswith("objective.path")
    assert "\n" not in str(caught.value)
