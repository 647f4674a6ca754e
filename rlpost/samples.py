"""From a step's scored groups to its samples: what the batch looks like, and its advantages."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rlpost import advantages
from rlpost.batching import Sample
from rlpost.choices import KLIn
from rlpost.episodes import trained
from rlpost.errors import StalenessError
from rlpost.kl import kl
from rlpost.metrics import Metrics
from rlpost.schema import RunConfig
from rlpost.types import Group, Trajectory

References = Sequence[tuple[float, ...] | None]
"""log pi_ref of each trained trajectory's tokens, None where nothing needs them."""


def take_samples(
    groups: Sequence[Group],
    references: References,
    config: RunConfig,
    version: int,
    metrics: Metrics,
) -> list[Sample]:
    """Turn rewards into advantages, and note what the learner of this version trains on.

    Raises:
        StalenessError: a token is older than the recipe allows.
    """
    trajectories = trained(groups)
    rewards = torch.tensor([t.reward for t in trajectories], dtype=torch.float64)
    _note_rewards(groups, rewards, metrics)
    for trajectory in trajectories:
        _note_response(trajectory, metrics)
        _note_staleness(trajectory, config, version, metrics)
        for name, value in trajectory.reward_parts.items():
            metrics.mean(f"reward/{name}", value, 1.0)
    values = advantages.compute(
        config.advantage.value,
        rewards - _kl_in_reward(trajectories, references, config),
        torch.tensor([i for i, group in enumerate(groups) for _ in group.trained]),
        normalize=config.normalize_advantages,
    )
    return [
        Sample(trajectory=trajectory, advantage=advantage, ref_logprobs=reference)
        for trajectory, advantage, reference in zip(
            trajectories, values.tolist(), references, strict=True
        )
    ]


def _note_rewards(groups: Sequence[Group], rewards: Float[Tensor, "B"], metrics: Metrics) -> None:
    metrics.mean("reward/mean", float(rewards.sum()), float(len(rewards)))
    metrics.mean("reward/std", float(rewards.std()), 1.0)
    for group in filter(lambda group: group.trained, groups):
        silent = len({trajectory.reward for trajectory in group.trained}) == 1
        metrics.mean("group/zero_advantage_frac", float(silent), 1.0)


def _note_response(trajectory: Trajectory, metrics: Metrics) -> None:
    metrics.mean("response/length_mean", float(len(trajectory.token_ids)), 1.0)
    metrics.mean("response/truncated_frac", float(trajectory.truncated), 1.0)


def _note_staleness(
    trajectory: Trajectory, config: RunConfig, version: int, metrics: Metrics
) -> None:
    oldest = min(trajectory.weight_versions, default=version)
    staleness = float(version - oldest)
    if staleness > config.staleness_bound:
        raise StalenessError(
            f"a token of version {oldest} would be trained on at version {version}, "
            f"and at most {config.staleness_bound} versions are allowed "
            f"(mode={config.mode.value}, max_staleness): {trajectory.worker} did not "
            "serve what was published"
        )
    metrics.mean("staleness/mean", staleness, 1.0)
    mixed = len(set(trajectory.weight_versions)) > 1
    metrics.mean("staleness/mixed_frac", float(mixed), 1.0)
    metrics.maximum("staleness/max", staleness)


def _kl_in_reward(
    trajectories: Sequence[Trajectory], references: References, config: RunConfig
) -> Float[Tensor, "B"]:
    """Return each trajectory's KL penalty where the recipe takes it from the reward."""
    penalties = torch.zeros(len(trajectories), dtype=torch.float64)
    if config.kl.where is not KLIn.reward:
        return penalties
    for index, (trajectory, reference) in enumerate(zip(trajectories, references, strict=True)):
        if reference is not None:
            sampled = torch.tensor([trajectory.behavior_logprobs], dtype=torch.float64)
            frozen = torch.tensor([reference], dtype=torch.float64)
            mask = torch.tensor([trajectory.loss_mask])
            divergence = kl(config.kl.estimator.value, sampled, frozen, mask)
            penalties[index] = config.kl_coef * divergence.sum()
    return penalties
