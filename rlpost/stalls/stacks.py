"""Where the threads and the asyncio tasks of this process are."""

import asyncio
import gc
import sys
import threading
import traceback
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine
from types import FrameType
from typing import Any

_MAX_AWAITS = 100


def threads(asking: str = "") -> str:
    """Return the stacks of this process's threads but for this one and the one named `asking`."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"Thread {names.get(ident, ident)}\n{_told(traceback.extract_stack(frame))}"
        for ident, frame in sys._current_frames().items()  # noqa: SLF001 - there is no public way
        if ident != threading.get_ident() and names.get(ident) != asking
    )


def tasks(loop: asyncio.AbstractEventLoop) -> str:
    """Return where the tasks of an event loop wait, those that wait at the same place together."""
    counts: Counter[str] = Counter()
    names: dict[str, str] = {}
    for task in asyncio.all_tasks(loop):
        where = _told(_awaits(task.get_coro()))
        counts[where] += 1
        names.setdefault(where, task.get_name())
    return "\n".join(
        f"Task {names[where]}{f' and {count - 1} more' if count > 1 else ''}\n{where}"
        for where, count in counts.most_common()
    )


def _awaits(awaited: Any) -> traceback.StackSummary:
    """Follow a coroutine through what it awaits; a task knows only its own first frame."""
    places: list[tuple[FrameType, int]] = []
    for _ in range(_MAX_AWAITS):
        frame = _attribute(awaited, "cr_frame", "ag_frame", "gi_frame")
        if frame is not None:
            places.append((frame, frame.f_lineno))
        following = _attribute(awaited, "cr_await", "ag_await", "gi_yieldfrom")
        awaited = _held(awaited) if following is None and frame is None else following
    return traceback.StackSummary.extract(iter(places))


def _attribute(awaited: Any, *names: str) -> Any:
    """Return it of a coroutine, an asynchronous generator or a generator."""
    return next((got for name in names if (got := getattr(awaited, name, None)) is not None), None)


def _held(awaited: Any) -> Any:
    """Return what is awaited by something without a frame, as compiled code or `anext()`."""
    held = gc.get_referents(awaited)
    return next((one for one in held if isinstance(one, Coroutine | AsyncGenerator)), None)


def _told(stack: traceback.StackSummary) -> str:
    return "".join(
        f"    {frame.name} ({frame.filename}:{frame.lineno})\n" for frame in reversed(stack)
    )
