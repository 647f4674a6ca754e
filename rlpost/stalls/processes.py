"""Processes of this machine as one who is not asked sees them: state, load, stack, children.

A stack comes from py-spy, which reads the process's memory and does not stop it. Where the machine
does not permit that, as in containers without ptrace, the process is sent the signal that
`rlpost.stalls.stack_signal` has answered, if it is one that answers.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from rlpost.stalls.stack_signal import MEMORY, SIGNAL

_PY_SPY_S = 5.0
_SIGNAL_S = 3.0
_SETTLED_S = 0.2  # without a further byte a stack is complete
_LOAD_S = 0.3  # over which a process's use of its cores is measured
_AT_ONCE = 8
_MAX_COMMAND = 100  # characters
_AIDES = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
_HALTED = {
    "T": "a signal has stopped it: `kill -CONT {pid}` lets it go on",
    "t": "a debugger holds it",
    "Z": "it has ended, and nobody has noticed",
    "X": "it has ended",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What is seen of a process.

    `state` is the kernel's, as `S (sleeping)`; `load` is how many cores it uses; `halted` says why
    it cannot go on, if it cannot; `stack` has where it is, or why that is not known.
    """

    name: str
    pid: int
    command: str
    state: str
    load: float
    stack: str
    halted: str = ""


def look_at(pids: Mapping[str, int]) -> list[Sight]:
    """Look at processes of this machine, by the names of their parts, and at their children."""
    found: list[tuple[str, psutil.Process]] = []
    gone: list[Sight] = []
    for name, pid in pids.items():
        try:
            process = psutil.Process(pid)
            found += [(name, one) for one in (process, *process.children(recursive=True))]
        except psutil.Error:
            gone.append(_gone(name, pid))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        sights = list(pool.map(lambda pair: _look(*pair), found))
    return gone + [sight for sight in sights if not any(aide in sight.command for aide in _AIDES)]


def _look(name: str, process: psutil.Process) -> Sight:
    try:
        command = " ".join(process.cmdline()).strip() or process.name()
        load = process.cpu_percent(_LOAD_S) / 100
        state = _status(process.pid)["State"]
    except (psutil.Error, OSError):
        return _gone(name, process.pid)
    return Sight(
        name=name,
        pid=process.pid,
        command=command if len(command) <= _MAX_COMMAND else f"{command[:_MAX_COMMAND]}...",
        state=state,
        load=load,
        stack=stack_of(process.pid),
        halted=_HALTED.get(state[0], "").format(pid=process.pid),
    )


def _gone(name: str, pid: int) -> Sight:
    gone = "it is gone"
    return Sight(name=name, pid=pid, command="", state="gone", load=0.0, stack=gone, halted=gone)


def _status(pid: int) -> dict[str, str]:
    """Return the lines of `/proc/PID/status`."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def stack_of(pid: int) -> str:
    """Return the stacks of a process's threads, or the reasons why they are not known."""
    try:
        return _by_py_spy(pid)
    except (OSError, subprocess.SubprocessError) as error:
        reason = f"py-spy: {_said(error)}"
    try:
        return _by_signal(pid)
    except OSError as error:
        return f"not known: {reason}; faulthandler: {error}"


def _by_py_spy(pid: int) -> str:
    program = py_spy()
    if program is None:
        raise FileNotFoundError("it is not installed")
    words = [program, "dump", "--nonblocking", "--pid", str(pid)]
    done = subprocess.run(  # noqa: S603 - a program that was found on this machine
        words, capture_output=True, text=True, timeout=_PY_SPY_S, check=True
    )
    # What comes first names process and Python, which is said already.
    return done.stdout.partition("\n\n")[2].rstrip() or done.stdout


def py_spy() -> str | None:
    """Return the program, beside this Python or on the path."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.is_file() else shutil.which("py-spy")


def _said(error: OSError | subprocess.SubprocessError) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return next(iter(error.stderr.strip().splitlines()), f"exit code {error.returncode}")
    return str(error)


def _by_signal(pid: int) -> str:
    """Have a process write its stacks itself.

    Raises:
        OSError: it is not one that does, or does not answer.
    """
    if _status(pid)["State"][0] in _HALTED:
        raise OSError("a process that is stopped or has ended cannot answer a signal")
    memory = _memory(pid)
    if memory is None:
        raise OSError("the process has not promised to answer")
    before = memory.stat().st_size
    os.kill(pid, SIGNAL)
    started = changed = time.monotonic()
    size = before
    while time.monotonic() - started < _SIGNAL_S:
        time.sleep(_SETTLED_S / 4)
        now = memory.stat().st_size
        if now != size:
            size, changed = now, time.monotonic()
        elif size > before and time.monotonic() - changed > _SETTLED_S:
            break
    if size == before:
        raise OSError(f"no answer to {SIGNAL.name} within {_SIGNAL_S:g} s")
    with memory.open("rb") as file:
        file.seek(before)
        return file.read().decode(errors="replace").rstrip()


def _memory(pid: int) -> Path | None:
    """Return where a process writes its stacks, among its open files."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if f"/memfd:{MEMORY}" in str(descriptor.readlink()):
                return descriptor
    return None
