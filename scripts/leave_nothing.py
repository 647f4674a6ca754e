"""Run a command and fail when it leaves a process behind: `leave_nothing.py COMMAND...`.

This process becomes the adoptive parent of every orphan below it, so that a daemon which left its
session and its process group is still found. It buries them as they die, as an init does.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
GRACE_S = 15.0


def main() -> int:
    """Run the command and return its exit status, or 1 when something outlived it."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        sys.stderr.write("[processes] this kernel cannot adopt orphans: leftovers go unseen\n")
    command = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(command, signal.SIGTERM))
    signal.signal(signal.SIGINT, lambda *_: None)  # a Ctrl-C reaches the command by itself
    status = wait_for(command)
    deadline = time.monotonic() + GRACE_S
    while (left := descendants()) and time.monotonic() < deadline:
        time.sleep(0.2)
    if not left:
        sys.stdout.write("[processes] none left behind\n")
        return status
    for pid in left:
        sys.stderr.write(f"[processes] left behind: {pid} {command_line(pid)}\n")
    while bury():
        for pid in descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    return status or 1


def wait_for(command: int) -> int:
    """Return a child's exit status; until it is there, bury all others that die, orphans too."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == command:
            return os.waitstatus_to_exitcode(status)


def bury() -> bool:
    """Bury the dead among this process's children; return whether others are left."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return True
    return False


def descendants() -> list[int]:
    """Return the live processes below this one."""
    parents = {pid: parent for pid in all_pids() if (parent := parent_of(pid)) is not None}
    found: list[int] = []
    todo = [os.getpid()]
    while todo:
        current = todo.pop()
        children = [pid for pid, parent in parents.items() if parent == current]
        found += children
        todo += children
    return found


def all_pids() -> list[int]:
    """Return the processes of this machine."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def parent_of(pid: int) -> int | None:
    """Return a live process's parent, or None when it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, parent = stat.rpartition(")")[2].split()[:2]
    return None if state == "Z" else int(parent)


def command_line(pid: int) -> str:
    """Return a process's command line, or nothing when it is gone."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return b" ".join(words).decode(errors="replace").strip()


if __name__ == "__main__":
    sys.exit(main())
