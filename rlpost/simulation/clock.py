"""An event loop whose time passes only where everybody waits, and then at once."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")
EARLY_S = 1e-6  # that a timer may come early by: far more than the rounding of a float here


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs asyncio programs on virtual time, which starts at 0 s.

    A sleep advances the clock instead of waiting; `spend` is work that keeps everybody waiting.
    Nothing outside the loop can be waited for. Use: `run(coroutine)`.
    """

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_Skipping(self))
        self._clock_resolution = EARLY_S

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now

    def spend(self, seconds: float) -> None:
        """Let time pass while the caller works: timers that are due meanwhile come late."""
        self._now += seconds


class _Skipping(selectors.SelectSelector):
    """Is told how long asyncio has nothing to do, and skips that time."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("the simulation waits for something that nothing will bring about")
        if timeout > 0:
            self._loop.spend(timeout)
        return []


def run(program: Coroutine[Any, Any, _T]) -> _T:
    """Run a program on a virtual loop of its own and return its result."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(program)


def virtual_loop() -> VirtualLoop:
    """Return the running loop, which is virtual."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop), "this runs on virtual time only"
    return loop
