"""Advantages of trajectories against their group."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from rlpost.errors import ConfigError, DataError

_EPS = 1e-8


def compute(
    name: str, rewards: Num[Tensor, "..."], group_ids: Int[Tensor, "..."]
) -> Float[Tensor, "N"]:
    """Return one advantage a trajectory, from lists `[N]` of rewards and of their groups.

    `grpo`: (R - mean) / (std + 1e-8) with the n-1 standard deviation; `dr_grpo`: R - mean. A group
    of equal rewards gives exactly 0.

    Raises:
        ConfigError: an unknown estimator.
        DataError: lengths differ, a reward is not finite, or a group has one member.
    """
    if name not in _ESTIMATORS:
        known = ", ".join(_ESTIMATORS)
        raise ConfigError(f"advantage={name}: no such estimator; available: {known}")
    if rewards.ndim != 1 or rewards.shape != group_ids.shape:
        raise DataError(
            f"rewards and group_ids must be equally long lists, got shapes {tuple(rewards.shape)} "
            f"and {tuple(group_ids.shape)}: the verifier must return one reward a trajectory"
        )
    if not bool(rewards.isfinite().all()):
        bad = int((~rewards.isfinite()).nonzero()[0])
        raise DataError(f"reward {bad} is {float(rewards[bad])}: a verifier must return numbers")
    rewards = rewards if rewards.is_floating_point() else rewards.double()
    advantages = torch.zeros_like(rewards)
    for group in group_ids.unique():
        members = group_ids == group
        advantages[members] = _of_group(name, rewards[members], int(group))
    return advantages


def _of_group(name: str, rewards: Tensor, group: int) -> Tensor:
    if len(rewards) == 1:
        raise DataError(
            f"group {group} has one trajectory and {name} compares within groups: "
            "use group_size of 2 or more"
        )
    # Equal rewards are caught before the mean, whose rounding would turn them into noise.
    if bool((rewards == rewards[0]).all()):
        return torch.zeros_like(rewards)
    return _ESTIMATORS[name](rewards)


def _grpo(rewards: Tensor) -> Tensor:
    return (rewards - rewards.mean()) / (rewards.std() + _EPS)


def _dr_grpo(rewards: Tensor) -> Tensor:
    return rewards - rewards.mean()


_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {"grpo": _grpo, "dr_grpo": _dr_grpo}
