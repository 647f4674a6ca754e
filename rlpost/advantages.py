"""Advantages of trajectories, or of their turns, against those sampled beside them."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from rlpost.errors import ConfigError, DataError

_EPS = 1e-8


def compute(
    name: str,
    rewards: Num[Tensor, "..."],
    group_ids: Int[Tensor, "..."],
    *,
    normalize: bool = False,
) -> Float[Tensor, "N"]:
    """Return one advantage a trajectory, from lists `[N]` of rewards R and of their groups.

    With mean and std (n-1) of the trajectory's group:

    * `grpo`: (R - mean) / (std + 1e-8). arXiv 2402.03300.
    * `dr_grpo`: R - mean. arXiv 2503.20783.
    * `rloo`: R - mean of the group's others. arXiv 2402.14740.
    * `max_rl`: (R - mean) / mean, 0 where the mean is 0.
    * `gigpo`: `gigpo` of trajectories of one turn each. arXiv 2505.10978.
    * `reinforce_baseline`: R - mean of the whole batch; `normalize` divides by the batch's std.

    Where rewards that are compared are all equal, the advantage is exactly 0.

    Raises:
        ConfigError: an unknown estimator, or `normalize` for another than `reinforce_baseline`.
        DataError: lengths differ, a reward is not finite, a group has one member and the estimator
            compares within groups, or `max_rl` gets a group whose mean is negative.
    """
    if name not in ESTIMATORS:
        known = ", ".join(ESTIMATORS)
        raise ConfigError(f"advantage={name}: no such estimator; available: {known}")
    if normalize and name != "reinforce_baseline":
        raise ConfigError(
            f"normalize_advantages=true is for advantage=reinforce_baseline, got advantage={name}: "
            "set it to false"
        )
    rewards = _checked(rewards, group_ids=group_ids)
    if name == "reinforce_baseline":
        whole = torch.zeros_like(group_ids)
        return _within(whole, rewards, _grpo if normalize else _dr_grpo)
    _refuse_lonely(name, group_ids)
    if name == "gigpo":
        once = torch.arange(len(rewards))
        return gigpo(rewards, once, group_ids, torch.zeros_like(once))
    return _within(group_ids, rewards, _OF_GROUP[name])


def gigpo(
    turn_rewards: Num[Tensor, "..."],
    trajectory_ids: Int[Tensor, "..."],
    group_ids: Int[Tensor, "..."],
    observation_ids: Int[Tensor, "..."],
    *,
    weight: float = 1.0,
    gamma: float = 0.95,
) -> Float[Tensor, "N"]:
    """Return one advantage a turn, from lists `[N]` over turns, each trajectory's in their order.

    It is the trajectory's `grpo` advantage, of the sum of its rewards, plus `weight` times the
    turn's among its anchor: the turns of the group that saw the same observation, compared by
    return sum_k gamma^(k-t) r_k. A turn alone in its anchor adds 0. Source: arXiv 2505.10978.

    Raises:
        DataError: lengths differ, a reward is not finite, or a group has one trajectory.
    """
    rewards = _checked(
        turn_rewards,
        trajectory_ids=trajectory_ids,
        group_ids=group_ids,
        observation_ids=observation_ids,
    )
    trajectories, turn_of = trajectory_ids.unique(return_inverse=True)
    totals = rewards.new_zeros(len(trajectories)).index_add(0, turn_of, rewards)
    groups = group_ids.new_zeros(len(trajectories)).scatter(0, turn_of, group_ids)
    _refuse_lonely("gigpo", groups)
    episodes = _within(groups, totals, _grpo)[turn_of]

    returns = rewards.clone()
    following: dict[int, int] = {}
    for turn in reversed(range(len(rewards))):
        trajectory = int(turn_of[turn])
        if trajectory in following:
            returns[turn] += gamma * returns[following[trajectory]]
        following[trajectory] = turn
    pairs = torch.stack([group_ids, observation_ids], dim=1)
    anchors = pairs.unique(dim=0, return_inverse=True)[1]
    return episodes + weight * _within(anchors, returns, _grpo)


def _checked(rewards: Tensor, **ids: Tensor) -> Tensor:
    for name, values in ids.items():
        if rewards.ndim != 1 or rewards.shape != values.shape:
            raise DataError(
                f"rewards and {name} must be equally long lists, got shapes "
                f"{tuple(rewards.shape)} and {tuple(values.shape)}: the verifier must return one "
                "reward a trajectory"
            )
    if not bool(rewards.isfinite().all()):
        bad = int((~rewards.isfinite()).nonzero()[0])
        raise DataError(f"reward {bad} is {float(rewards[bad])}: a verifier must return numbers")
    return rewards if rewards.is_floating_point() else rewards.double()


def _refuse_lonely(name: str, group_ids: Tensor) -> None:
    groups, sizes = group_ids.unique(return_counts=True)
    if bool((sizes == 1).any()):
        raise DataError(
            f"group {int(groups[sizes == 1][0])} has one trajectory and {name} compares within "
            "groups: use group_size of 2 or more"
        )


def _within(
    group_ids: Tensor, rewards: Tensor, of_group: Callable[[Tensor], Tensor]
) -> Float[Tensor, "N"]:
    """Apply an estimator to each group; equal rewards, and one alone, give exactly 0."""
    advantages = torch.zeros_like(rewards)
    for group in group_ids.unique():
        members = group_ids == group
        own = rewards[members]
        # Equal rewards are caught before the mean, whose rounding would turn them into noise.
        if bool((own != own[0]).any()):
            advantages[members] = of_group(own)
    return advantages


def _grpo(rewards: Tensor) -> Tensor:
    return (rewards - rewards.mean()) / (rewards.std() + _EPS)


def _dr_grpo(rewards: Tensor) -> Tensor:
    return rewards - rewards.mean()


def _rloo(rewards: Tensor) -> Tensor:
    others = (rewards.sum() - rewards) / (len(rewards) - 1)
    return rewards - others


def _max_rl(rewards: Tensor) -> Tensor:
    mean = rewards.mean()
    if mean < 0:
        raise DataError(
            f"advantage=max_rl divides by a group's mean reward, and {float(mean):g} would turn "
            "all signs around: use rewards of 0 or more, or another estimator"
        )
    return (rewards - mean) / mean if mean > 0 else torch.zeros_like(rewards)


_OF_GROUP: dict[str, Callable[[Tensor], Tensor]] = {
    "grpo": _grpo,
    "dr_grpo": _dr_grpo,
    "rloo": _rloo,
    "max_rl": _max_rl,
}
ESTIMATORS = (*_OF_GROUP, "gigpo", "reinforce_baseline")
