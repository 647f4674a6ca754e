"""Advantages against arithmetic by hand."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpost.advantages import compute, gigpo
from rlpost.errors import ConfigError, DataError

NAMES = ["grpo", "dr_grpo", "rloo", "max_rl", "gigpo", "reinforce_baseline"]


def by_hand(name, rewards):
    mean = math.fsum(rewards) / len(rewards)
    if name in ("dr_grpo", "reinforce_baseline"):
        return [r - mean for r in rewards]
    if name == "rloo":
        others = [math.fsum(rewards) - r for r in rewards]
        return [r - o / (len(rewards) - 1) for r, o in zip(rewards, others, strict=True)]
    if name == "max_rl":
        return [(r - mean) / mean if mean else 0.0 for r in rewards]
    variance = math.fsum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)
    # Trajectories of one turn are compared twice by gigpo: as episodes and as turns.
    times = 2 if name == "gigpo" else 1
    return [times * (r - mean) / (math.sqrt(variance) + 1e-8) for r in rewards]


def test_two_groups_by_hand():
    rewards = torch.tensor([1.0, 5.0, 0.0, 0.0, 7.0, 1.0], dtype=torch.float64)
    groups = torch.tensor([4, 9, 4, 4, 9, 4])
    half, root = 0.5 / math.sqrt(1 / 3), 1 / math.sqrt(2)
    expected = [half, -root, -half, -half, root, half]
    assert compute("grpo", rewards, groups).tolist() == pytest.approx(expected, rel=1e-7)
    assert compute("dr_grpo", rewards, groups).tolist() == [0.5, -1.0, -0.5, -0.5, 1.0, 0.5]


@pytest.mark.parametrize("name", NAMES)
@given(rewards=st.lists(st.integers(-50, 50).map(lambda n: n / 7), min_size=2, max_size=16))
@settings(max_examples=50)
def test_a_group_equals_a_loop_over_scalars(name, rewards):
    rewards = [abs(reward) for reward in rewards] if name == "max_rl" else rewards
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


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"reinforce_baseline"}))
def test_a_group_without_signal_stays_silent_beside_one_with(name):
    rewards = torch.tensor([0.1 + 0.2, 1.0, 0.1 + 0.2, 0.0, 0.1 + 0.2], dtype=torch.float64)
    values = compute(name, rewards, torch.tensor([0, 1, 0, 1, 0]))
    assert values[[0, 2, 4]].tolist() == [0.0] * 3
    assert float(values[1]) > 0 > float(values[3])


def test_the_batch_baseline_compares_over_groups_and_lets_one_stand_alone():
    rewards = torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64)
    groups = torch.tensor([0, 1, 2])
    assert compute("reinforce_baseline", rewards, groups).tolist() == [2.0, -1.0, -1.0]
    scaled = compute("reinforce_baseline", rewards, groups, normalize=True)
    assert scaled.tolist() == pytest.approx([2 / 3**0.5, -1 / 3**0.5, -1 / 3**0.5])
    with pytest.raises(ConfigError, match="normalize_advantages=true"):
        compute("grpo", rewards, groups, normalize=True)


def test_max_rl_refuses_a_mean_that_would_turn_signs_around():
    with pytest.raises(DataError, match="turn all signs around"):
        compute("max_rl", torch.tensor([-1.0, 0.0]), torch.tensor([0, 0]))
    zero = compute("max_rl", torch.tensor([-1.0, 1.0]), torch.tensor([0, 0]))
    assert zero.tolist() == [0.0, 0.0]


def test_gigpo_by_hand():
    # Two trajectories of a group, of two turns and one; their first turns saw the same.
    rewards = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    values = gigpo(
        rewards,
        trajectory_ids=torch.tensor([5, 5, 7]),
        group_ids=torch.tensor([1, 1, 1]),
        observation_ids=torch.tensor([0, 3, 0]),
        gamma=0.9,
        weight=0.5,
    )
    root = 1 / math.sqrt(2)
    # Returns are 0.9, 1 and 0: the anchor's two differ, the lone turn adds nothing.
    assert values.tolist() == pytest.approx([1.5 * root, root, -1.5 * root], rel=1e-6)


def test_gigpo_equals_a_loop_over_scalars():
    rng = random.Random(4)
    turns = [
        (g, g * 10 + t, rng.randrange(3), rng.randrange(3) / 3)
        for g in range(3)
        for t in range(4)
        for _ in range(rng.randrange(1, 5))
    ]
    expected = []
    for index, (group, trajectory, seen, _) in enumerate(turns):

        def total(t):
            return math.fsum(turn[3] for turn in turns if turn[1] == t)

        def back(i):
            later = [turn[3] for turn in turns[i:] if turn[1] == turns[i][1]]
            return math.fsum(0.95**k * r for k, r in enumerate(later))

        episodes = [total(t) for t in sorted({turn[1] for turn in turns if turn[0] == group})]
        anchor = [back(i) for i, t in enumerate(turns) if (t[0], t[2]) == (group, seen)]
        expected.append(scaled(total(trajectory), episodes) + scaled(back(index), anchor))
    columns = [torch.tensor(column) for column in zip(*turns, strict=True)]
    groups, trajectories, seen, _ = columns
    exact = torch.tensor([turn[3] for turn in turns], dtype=torch.float64)
    ours = gigpo(exact, trajectories, groups, seen)
    assert ours.tolist() == pytest.approx(expected, rel=1e-10, abs=1e-10)


def scaled(value, others):
    if len(set(others)) == 1:
        return 0.0
    mean = math.fsum(others) / len(others)
    variance = math.fsum((o - mean) ** 2 for o in others) / (len(others) - 1)
    return (value - mean) / (math.sqrt(variance) + 1e-8)


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
    with pytest.raises(ConfigError, match="available: grpo, dr_grpo, rloo"):
        compute("gae", torch.tensor([1.0, 0.0]), torch.tensor([0, 0]))
