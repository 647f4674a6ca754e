"""Ends a run on SIGINT or SIGTERM at once, on SIGUSR1 in good time; orphans, with their parent."""

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Self

import psutil

from rlpost.errors import RlpostError, StoppedError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG = 1
_LIMIT_S = 7.0  # for all that the run has started to end; then it is killed


class Ending:
    """Watches for the first signal, in a thread of its own: a busy loop would see it too late.

    Use: `with Ending() as ending:` around all that is to be ended. Until `cancels(...)` has told
    it how to end the run in order, there is nothing to lose, and a signal kills at once. `signal`
    names the one that came, `error` is what `fail(...)` was told. With `stoppable`, SIGUSR1 does
    not end but asks for an end: `stopped` is then what to raise once a checkpoint is written.
    """

    def __init__(self, *, stoppable: bool = False) -> None:
        self.signal: str | None = None
        self.error: RlpostError | None = None
        self.stopped: StoppedError | None = None
        self._taken = (*_SIGNALS, signal.SIGUSR1) if stoppable else _SIGNALS
        self._cancel: Callable[[], object] | None = None
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._handlers = {number: signal.getsignal(number) for number in self._taken}
        self._take_signals()
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="ending", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._writer.close()

    def cancels(self, cancel: Callable[[], object]) -> None:
        """From now on a signal calls `cancel`, in another thread, and kills after a while."""
        self._take_signals()  # Ray has put its own handlers there
        self._cancel = cancel

    def fail(self, error: RlpostError) -> None:
        """End the run with an error, from another thread: in order, or else by killing it."""
        self.error = error
        if self._cancel is not None:
            self._cancel()
        if not self._over.wait(_LIMIT_S):
            sys.stderr.write(f"rlpost: {error}\n")
            kill_all(1)

    def _take_signals(self) -> None:
        for number in self._taken:
            signal.signal(number, lambda *_: None)

    def _watch(self) -> None:
        with self._reader:
            while byte := self._reader.recv(1):
                if byte[0] in _SIGNALS:
                    self._end(signal.Signals(byte[0]).name)
                    return
                if byte[0] == signal.SIGUSR1 and self.stopped is None:
                    self._stop()

    def _stop(self) -> None:
        sys.stderr.write("\nSIGUSR1: this step, a checkpoint, and then the end\n")
        self.stopped = StoppedError(
            "stopped by SIGUSR1 before the last step, after a checkpoint: continue with resume=auto"
        )

    def _end(self, name: str) -> None:
        self.signal = name
        if self._cancel is None:
            sys.stderr.write(f"\n{name}: ending\n")
            kill_all(130)
            return
        sys.stderr.write(f"\n{name}: ending all actors\n")
        self._cancel()
        if not self._over.wait(_LIMIT_S):
            kill_all(130)


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent is gone, however that ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def kill_all(code: int) -> None:
    """Kill all that this run has started, and end this process with an exit code."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()
    os._exit(code)
