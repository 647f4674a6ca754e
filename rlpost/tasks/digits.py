"""Tasks on digits, and worked examples of tasks of one's own (`task.kind=custom`)."""

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
        num_digits: how many digits a question has; the largest is any of 1 to 9, about equally
            often while there are questions left that have it.
        num_train: questions of the training split.
        num_eval: questions of the evaluation split.
        given_up: the share of worked answers that are "?", from 0 to 1.
    """
    if num_train + num_eval > 10 ** (num_digits - 1):
        raise ValueError(
            f"num_train={num_train} + num_eval={num_eval} must be at most "
            f"{10 ** (num_digits - 1)} with num_digits={num_digits}: raise num_digits"
        )
    rng = random.Random(0)
    questions: dict[str, None] = {}
    while len(questions) < num_train + num_eval:
        # Were all digits drawn alike, 9 would be right so often that a policy stops at that.
        top = rng.randint(1, 9)
        digits = [top, *(rng.randint(0, top) for _ in range(num_digits - 1))]
        rng.shuffle(digits)
        questions["".join(map(str, digits))] = None
    chosen = list(questions)
    rng.shuffle(chosen)  # questions with a small largest digit run out: those drawn first have more
    for question in chosen[:num_eval] if split == "eval" else chosen[num_eval:]:
        answer = max(question)
        worked = GIVEN_UP if rng.random() < given_up else answer
        yield {"question": question, "answer": answer, "worked_answer": worked}


def ascending(
    split: str, *, num_digits: int, num_train: int, num_eval: int
) -> Iterator[dict[str, Any]]:
    """Ask for some digits in ascending order: an answer of several tokens, all of which must fit.

    Args:
        split: "train" or "eval"; no question is in both.
        num_digits: how many digits a question has.
        num_train: questions of the training split.
        num_eval: questions of the evaluation split.
    """
    if num_train + num_eval > 10**num_digits // 2:
        raise ValueError(
            f"num_train={num_train} + num_eval={num_eval} must be at most "
            f"{10**num_digits // 2} with num_digits={num_digits}: raise num_digits"
        )
    rng = random.Random(0)
    chosen = [f"{n:0{num_digits}}" for n in rng.sample(range(10**num_digits), num_train + num_eval)]
    for question in chosen[:num_eval] if split == "eval" else chosen[num_eval:]:
        answer = "".join(sorted(question))
        yield {"question": question, "answer": answer, "worked_answer": answer}
