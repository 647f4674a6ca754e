"""The quick start's task, and a worked example of a task of one's own (`task.kind=custom`)."""

import random
from collections.abc import Iterator
from typing import Any


def largest(
    split: str, *, num_digits: int, num_train: int, num_eval: int, flawed: float
) -> Iterator[dict[str, Any]]:
    """Ask for the largest of a few digits; some worked answers name the smallest instead.

    Who only imitates the worked answers learns both habits. Which of them is right, the verifier
    alone knows: a policy finds it out by trial and error.

    Args:
        split: "train" or "eval"; no question is in both.
        num_digits: how many digits a question has.
        num_train: questions of the training split.
        num_eval: questions of the evaluation split.
        flawed: the share of worked answers that are wrong, from 0 to 1.
    """
    rng = random.Random(0)
    numbers = rng.sample(range(10**num_digits), num_train + num_eval)
    for number in numbers[:num_eval] if split == "eval" else numbers[num_eval:]:
        digits = f"{number:0{num_digits}d}"
        worked = min(digits) if rng.random() < flawed else max(digits)
        yield {"question": " ".join(digits), "answer": max(digits), "worked_answer": worked}
