"""Advantages against arithmetic by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpost.advantages import compute
from rlpost.errors import ConfigError, DataError

NAMES = ["grpo", "dr_grpo"]


def by_hand(name, rewards):
    mean = math.fsum(rewards) / len(rewards)
    if name == "dr_grpo":
        return [r - mean for r in rewards]
    variance = math.fsum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)
    return [(r - mean) / (math.sqrt(variance) + 1e-8) for r in rewards]


def test_two_groups_by_hand():
    rewards = torch.tensor([1.0, 5.0, 0.0, 0.0, 7.0, 1.0], dtype=torch.float64)
    groups = torch.tensor([4, 9, 4, 4, 9, 4])
    half, root = 0.5 / math.sqrt(1 / 3), 1 / math.sqrt(2)
    expected = [half, -root, -half, -half, root, half]
    assert compute("grpo", rewards, groups).tolist() == pytest.approx(expected, rel=1e-7)
    assert compute("dr_grpo", rewards, groups).tolist() == [0.5, -1.0, -0.5, -0.5, 1.0, 0.5]


@pytest.mark.parametrize("name", NAMES)
@given(rewards=st.lists(st.integers(-50, 50).map(lambda n: n / 7), min_size=2, max_size=16))
@settings(max_examples=50, deadline=None)
def test_a_group_equals_a_loop_over_scalars(name, rewards):
    groups = torch.zeros(len(rewards), dtype=torch.int64)
    ours = compute(name, torch.tensor(rewards, dtype=torch.float64), groups)
    expected = by_hand(name, rewards) if len(set(rewards)) > 1 else [0.0] * len(rewards)
    assert ours.tolist() == pytest.approx(expected, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [2, 3, 7, 11])
def test_equal_rewards_give_exactly_zero(name, dtype, size):
    rewards = torch.full((size,), 0.1 + 0.2, dtype=dtype)
    assert compute(name, rewards, torch.zeros(size, dtype=torch.int64)).tolist() == [0.0] * size


def test_whole_numbers_are_rewards_too():
    assert compute("dr_grpo", torch.tensor([1, 0]), torch.tensor([0, 0])).tolist() == [0.5, -0.5]


@pytest.mark.parametrize(
    ("rewards", "groups", "said"),
    [
        ([1.0, 2.0, 3.0], [0, 0], "equally long"),
        ([1.0, math.nan], [0, 0], "reward 1 is nan"),
        ([math.inf, 1.0], [0, 0], "reward 0 is inf"),
        ([1.0, 2.0, 3.0], [0, 0, 5], "group 5 has one trajectory"),
    ],
)
def test_bad_rewards_are_refused(rewards, groups, said):
    with pytest.raises(DataError, match=said):
        compute("grpo", torch.tensor(rewards), torch.tensor(groups))


def test_an_unknown_estimator_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="available: grpo, dr_grpo"):
        compute("gae", torch.tensor([1.0, 0.0]), torch.tensor([0, 0]))
