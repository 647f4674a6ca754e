"""Ends what a driver that was killed has left: run as a file of its own, so that it stays small.

A local Ray and its actors notice the death of their driver late, some of its agents after more
than a minute. They are found by a mark that all inherit in their environment and, since some
overwrite that with their title, by the log files of the Ray session that they write.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

MARK = "RLPOST_DRIVER"
IN_ORDER = "in order"
_TRACKER = b"multiprocessing.resource_tracker"  # removes semaphores once its parent is gone
_PATIENCE_S = 5.0
_LIMIT_S = 60.0


def left_by(mark: str, session: str) -> list[int]:
    """Return the processes that carry the mark or write files of the session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            # It may end meanwhile, or be another user's.
            with contextlib.suppress(OSError):
                marked = f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0")
                if marked or (session and any(f.startswith(session) for f in _written(entry))):
                    found.append(int(entry.name))
    return found


def _written(process: Path) -> Iterator[str]:
    """Yield the files that a process has open for writing; whoever reads a log lives on."""
    for descriptor in (process / "fd").iterdir():
        with contextlib.suppress(OSError):
            information = (process / "fdinfo" / descriptor.name).read_text()
            if int(information.split("flags:")[1].split()[0], 8) & os.O_ACCMODE != os.O_RDONLY:
                yield str(descriptor.readlink())


def bury(mark: str, session: str) -> None:
    """Kill all of them, until there is none."""
    started = time.monotonic()
    while (left := left_by(mark, session)) and time.monotonic() - started < _LIMIT_S:
        for pid in left:
            with contextlib.suppress(OSError):
                tidying = _TRACKER in Path(f"/proc/{pid}/cmdline").read_bytes()
                if not tidying or time.monotonic() - started > _PATIENCE_S:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def main() -> None:
    """Wait until the driver, which holds the other end of stdin, says so or dies.

    It may say once which folder its Ray session has.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    session = ""
    for line in sys.stdin:
        if line.strip() == IN_ORDER:
            return
        session = line.strip()
    bury(sys.argv[1], session)


if __name__ == "__main__":
    main()
