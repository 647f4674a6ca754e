"""Verifiers: functions of (response, answer, metadata) to a reward or its named parts.

They run in a process of their own (`rlpost.tasks.verify_process`), so this module imports nothing
heavy, and none of them needs a time limit.
"""

import json
import logging
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from rlpost.errors import DataError

Verifier = Callable[[str, str | None, Mapping[str, Any]], float | Mapping[str, float]]


def exact(response: str, answer: str | None, metadata: Mapping[str, Any]) -> float:
    """Return 1 if the response is the answer, white space at the ends aside."""
    del metadata
    return float(response.strip() == (answer or "").strip())


def reasoning_gym(response: str, answer: str | None, metadata: Mapping[str, Any]) -> float:
    """Return the score of the question's own generator, from 0 to 1."""
    parameters = json.dumps(metadata.get("task_parameters", {}), sort_keys=True)
    score = _score_function(metadata["source_dataset"], parameters)
    return float(score(response.strip(), {"answer": answer, "metadata": dict(metadata)}))


@cache
def _score_function(name: str, parameters: str) -> Callable[..., float]:
    """Return a generator's score function, which may depend on the generator's parameters."""
    import reasoning_gym as gym

    return gym.create_dataset(name, **json.loads(parameters)).score_answer


def math(response: str, answer: str | None, metadata: Mapping[str, Any]) -> float:
    """Return 1 if the response's last mathematical expression equals the answer.

    Raises:
        DataError: the answer holds no mathematical expression, so that no response could be right.
    """
    del metadata
    from math_verify import parse, verify

    # Its own time limits use signal.alarm; ours is the process's.
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that they are off
    without_limit: Any = None
    gold = parse(f"${answer}$", parsing_timeout=without_limit) if answer else []
    if not gold:
        raise DataError(f"the answer {answer!r} holds no mathematical expression")
    given = parse(response, parsing_timeout=without_limit)
    return float(bool(given) and verify(gold, given, timeout_seconds=without_limit))


BUILT_IN: dict[str, Verifier] = {"exact": exact, "math": math, "reasoning_gym": reasoning_gym}
LIBRARIES = {"math": "math_verify", "reasoning_gym": "reasoning_gym"}
"""What a verifier imports at its first use, and its process beforehand."""
