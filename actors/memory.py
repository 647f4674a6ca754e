"""The memory of a process; a module of its own, so that an actor imports little to measure it."""

import contextlib
from typing import Any

import psutil


def resident_gib(_: Any = None, *, children: bool = True) -> float:
    """Return the memory of this process, and of those it started, without what it shares."""
    process = psutil.Process()
    size_bytes = 0
    for one in (process, *(process.children(recursive=True) if children else ())):
        with contextlib.suppress(psutil.Error):
            memory = one.memory_info()
            size_bytes += memory.rss - memory.shared
    return size_bytes / 2**30
