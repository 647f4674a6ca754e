"""The child process that runs verifiers: one line in for each item, one JSON line out.

It can be killed at any moment without harm to anyone; it ends with its parent.
"""

import base64
import ctypes
import json
import math
import os
import pickle
import signal
import sys
from importlib import import_module
from typing import Any

from rlpost.stalls.stack_signal import answer_signal

_PR_SET_PDEATHSIG = 1
_MAX_DETAIL = 2000  # characters; a verifier may put a whole response into its exception


def main() -> None:
    """Serve requests from standard input until it closes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        answer_signal()
    # What a verifier prints or reads must not mix with answers and requests.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    requests = os.fdopen(os.dup(0), "rb")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        verify = _verifier(sys.argv[1])
    except Exception as error:  # noqa: BLE001 - a user's module may raise anything on import
        answers.write(json.dumps({"failed": _described(error)}) + "\n")
        return
    # After the import: loading a library needs address space that verifying does not.
    _limit_memory(float(sys.argv[2]))
    answers.write(json.dumps({"ready": True}) + "\n")
    answers.flush()
    for line in requests:
        item = pickle.loads(base64.b64decode(line))  # noqa: S301 - from our own parent
        answers.write(json.dumps(_answer(verify, item)) + "\n")
        answers.flush()


def _limit_memory(memory_gib: float) -> None:
    if memory_gib > 0 and sys.platform == "linux":
        import resource

        size_bytes = int(memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (size_bytes, size_bytes))


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
        parts = {}
        if isinstance(result, dict):
            parts = {str(name): float(value) for name, value in result.items()}
        reward = float(sum(parts.values()) if parts else result)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's verifier may raise anything
        return {"status": "error", "reward": None, "detail": _described(error)}
    if not math.isfinite(reward):
        return {"status": "error", "reward": None, "detail": f"reward is {reward}"}
    return {"status": "ok", "reward": reward, "parts": parts}


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_MAX_DETAIL]


if __name__ == "__main__":
    main()
