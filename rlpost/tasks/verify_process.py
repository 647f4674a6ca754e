"""The child process that runs verifiers: one JSON line in for each item, one line out.

It can be killed at any moment without harm to anyone; it ends with its parent.
"""

import ctypes
import json
import math
import os
import signal
import sys
from importlib import import_module
from typing import Any

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve requests from standard input until it closes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # What a verifier prints must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    verify = _verifier(sys.argv[1])
    answers.write(json.dumps({"ready": True}) + "\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(_answer(verify, json.loads(line))) + "\n")
        answers.flush()


def _verifier(name: str) -> Any:
    from rlpost.tasks.verifiers import BUILT_IN, LIBRARIES

    if name in BUILT_IN:
        # Loaded before the first item: the time limit is for verifying, not for importing.
        if name in LIBRARIES:
            import_module(LIBRARIES[name])
        return BUILT_IN[name]
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)


def _answer(verify: Any, item: dict[str, Any]) -> dict[str, Any]:
    try:
        result = verify(item["response"], item["answer"], item["metadata"])
        parts = dict(result) if isinstance(result, dict) else {}
        reward = float(sum(parts.values()) if parts else result)
    except Exception as error:  # noqa: BLE001 - a user's verifier may raise anything; it is reported
        return {"status": "error", "reward": None, "detail": f"{type(error).__name__}: {error}"}
    if not math.isfinite(reward):
        return {"status": "error", "reward": None, "detail": f"reward is {reward}"}
    return {"status": "ok", "reward": reward, "parts": parts}


if __name__ == "__main__":
    main()
