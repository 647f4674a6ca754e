"""What is refused, or told, of a run's data: verdicts that are none, questions asked twice."""

import math
from collections.abc import Iterable, Sequence

from rlpost.errors import GuardError
from rlpost.types import Prompt, Trajectory, Verdict


def check_rewards(
    prompt: Prompt, trajectories: Sequence[Trajectory], verdicts: Sequence[Verdict]
) -> None:
    """Refuse verdicts that are not one a trajectory, or whose numbers are none.

    Raises:
        GuardError: which prompt, and what its verifier returned.
    """
    if len(verdicts) != len(trajectories):
        raise GuardError(
            f"guard rewards: prompt {prompt.id}: the verifier returned {len(verdicts)} verdicts "
            f"for {len(trajectories)} trajectories: it must return one for each, in order; see "
            "task.verifier"
        )
    for index, verdict in enumerate(verdicts):
        numbers = {**verdict.parts, "reward": 0.0 if verdict.reward is None else verdict.reward}
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise GuardError(
                    f"guard rewards: prompt {prompt.id}, response {index}: {name} is {value}: a "
                    "verifier must return finite numbers, or status `error` without a reward; "
                    "see task.verifier"
                )


def overlap(training: Iterable[str], held_out: Sequence[str]) -> str | None:
    """Say which evaluation prompts, as rendered, are also trained on; case and spaces apart."""
    evaluated = {_plain(text) for text in held_out}
    found = {text: None for text in training if _plain(text) in evaluated}
    if not found:
        return None
    count = len({_plain(text) for text in found})
    examples = "; ".join(repr(text[:80]) for text in list(found)[:3])
    return (
        f"{count} of {len(evaluated)} evaluation prompts are trained on too, as {examples}: "
        "accuracy on them is no measure; take them out of one split (data.split, data.eval_split, "
        "or the task's own)"
    )


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
