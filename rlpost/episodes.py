"""Episodes: a sampled group with what its verification gave, and what of it is fit to train on."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rlpost.choices import OnTimeout
from rlpost.errors import DataError
from rlpost.guards import check_rewards
from rlpost.metrics import Metrics
from rlpost.types import Group, Prompt, Trajectory, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """A group whose trajectories have a reward or the reason why they are dropped.

    `statuses` are how their verifications ended, in order.
    """

    group: Group
    statuses: tuple[str, ...]

    @property
    def has_signal(self) -> bool:
        """Whether rewards differ within the group, so that it teaches something."""
        return len({trajectory.reward for trajectory in self.group.trained}) > 1


def scored(group: Group, verdicts: Sequence[Verdict], rule: OnTimeout) -> Episode:
    """Attach verdicts to a group; `rule` says what becomes of one that gave no reward.

    Raises:
        GuardError: another number of verdicts than of trajectories, or a reward that is no number.
        DataError: a verification failed, and the rule is `fail`.
    """
    check_rewards(group.prompt, group.trajectories, verdicts)
    trajectories = []
    for trajectory, verdict in zip(group.trajectories, verdicts, strict=True):
        if verdict.reward is None and rule is OnTimeout.fail:
            raise DataError(
                f"prompt {group.prompt.id}: verification ended in {verdict.status}: "
                f"{verdict.detail}; reward.on_timeout=fail stops the run here, `drop` and `zero` "
                "would go on"
            )
        if verdict.reward is None and rule is OnTimeout.drop:
            trajectories.append(replace(trajectory, dropped=verdict.status))
        else:
            trajectories.append(trajectory.scored(replace(verdict, reward=verdict.reward or 0.0)))
    return Episode(
        group=replace(group, trajectories=tuple(trajectories)),
        statuses=tuple(verdict.status for verdict in verdicts),
    )


def dropped(group: Group, reason: str) -> Group:
    """Return a group none of which is trained on, for this reason or for an earlier one."""
    return replace(
        group,
        trajectories=tuple(replace(t, dropped=t.dropped or reason) for t in group.trajectories),
    )


def gathered(
    episodes: Sequence[Episode], replaced: Sequence[Episode], least: int, metrics: Metrics
) -> list[Group]:
    """Return the groups of a step, also what is dropped of them, with its reasons counted.

    Args:
        episodes: those to train on.
        replaced: those in whose place others were sampled.
        least: trajectories that a group needs to be compared within.
        metrics: told of statuses and reasons.

    Raises:
        DataError: nothing is left to train on.
    """
    groups: list[Group] = []
    for episode in episodes:
        few = len(episode.group.trained) < least
        groups.append(dropped(episode.group, "alone") if few else episode.group)
    if not any(group.trained for group in groups):
        raise DataError(
            f"none of {len(groups)} groups has {least} scored trajectories: every verification "
            "failed or ran out of time; see reward.timeout_s and task.verifier"
        )
    metrics.sum("dropped/groups", float(sum(not group.trained for group in groups)))
    metrics.sum("group/replaced", float(len(replaced)))
    groups += [dropped(episode.group, "no_signal") for episode in replaced]
    for episode in (*episodes, *replaced):
        for status in episode.statuses:
            metrics.sum(f"reward/{status}_count", 1.0)
    for group in groups:
        for trajectory in group.trajectories:
            metrics.sum("tokens/generated", float(len(trajectory.token_ids)))
            if trajectory.dropped:
                metrics.sum(f"dropped/{trajectory.dropped}", 1.0)
    return groups


def trained(groups: Sequence[Group]) -> list[Trajectory]:
    """Return the trajectories to train on."""
    return [trajectory for group in groups for trajectory in group.trained]


def plain(episode: Episode) -> dict[str, Any]:
    """Return an episode as JSON; of its prompt only the id, since JSON would alter metadata."""
    return {
        "prompt": episode.group.prompt.id,
        "statuses": list(episode.statuses),
        "trajectories": [asdict(trajectory) for trajectory in episode.group.trajectories],
    }


def episode_of(content: Mapping[str, Any], prompts: Mapping[str, Prompt]) -> Episode:
    """Return the episode that `plain` described, given its prompt by id."""
    trajectories: list[Trajectory] = []
    for one in content["trajectories"]:
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in one.items()
        }
        trajectories.append(Trajectory(**fields))
    group = Group(prompt=prompts[content["prompt"]], trajectories=tuple(trajectories))
    return Episode(group=group, statuses=tuple(content["statuses"]))
