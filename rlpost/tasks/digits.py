"""The quick start's task, and a worked example of a task of one's own (`task.kind=custom`)."""

import random
from collections.abc import Iterator
from typing import Any

GIVEN_UP = "?"


def largest(
    split: str, *, num_digits: int, num_train: int, num_eval: int, given_up: float
) -> Iterator[dict[str, Any]]:
    """Ask for the largest of a few digits; a share of the worked answers gives up instead.

    Who only imitates such demonstrations gives up too, though it has seen how to answer: that an
    answer is worth more than none, a policy finds out from the verifier.

    Args:
        split: "train" or "eval"; no question is in both.
        num_digits: how many digits a question has.
        num_train: questions of the training split.
        num_eval: questions of the evaluation split.
        given_up: the share of worked answers that are "?", from 0 to 1.
    """
    rng = random.Random(0)
    numbers = rng.sample(range(10**num_digits), num_train + num_eval)
    for number in numbers[:num_eval] if split == "eval" else numbers[num_eval:]:
        digits = f"{number:0{num_digits}d}"
        worked = GIVEN_UP if rng.random() < given_up else max(digits)
        yield {"question": " ".join(digits), "answer": max(digits), "worked_answer": worked}
