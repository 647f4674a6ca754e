"""A run under the watchdog, and what is done about one that stands still."""

import asyncio
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from actors.ending import kill_all
from actors.launch import Cast
from actors.witnesses import witnesses
from rlpost.choices import OnStall
from rlpost.errors import RlpostError, StallError
from rlpost.reporting.console import View
from rlpost.schema import RunConfig
from rlpost.stalls import stall
from rlpost.stalls.watchdog import Stall, Watchdog

Restart = Callable[[str], Awaitable[None]]
_NOTICE_S = 30.0  # for the event loop to take note that the run is to stop


@asynccontextmanager
async def watched(cast: Cast, config: RunConfig, view: View) -> AsyncGenerator[Watchdog]:
    """Watch the block, in which a cast's actors work.

    Raises:
        StallError: nothing advanced, and `watchdog.action=stop`.
        ActorError: what stands still could not be restarted.
    """
    loop = asyncio.get_running_loop()
    response = Response(config.watchdog.action, cast.restart)
    folder = Path(config.run_dir) / "stalls"
    watchdog = Watchdog(cast.progress, folder, config.watchdog.after_s, view.message, response.to)
    watchdog.witnesses = cast.witnesses
    watchdog.witnesses["Crews"] = lambda: stall.Section(text=cast.state())
    watchdog.witnesses |= witnesses(lambda: cast.actors, cast.present)
    watchdog.witnesses["Driver"] = lambda: stall.driver(loop)
    try:
        with watchdog:
            yield watchdog
    except asyncio.CancelledError:
        if response.error is None or response.task.uncancel():
            raise
        raise response.error from None


class Response:
    """What `watchdog.action` does; `error` is what the task that makes it is cancelled for."""

    def __init__(self, action: OnStall, restart: Restart) -> None:
        task = asyncio.current_task()
        assert task is not None, "a run is a task"
        self.task = task
        self.loop = asyncio.get_running_loop()
        self.action = action
        self.restart = restart
        self.error: RlpostError | None = None

    def to(self, found: Stall) -> None:
        """Do it, from the watchdog's thread."""
        if self.action is OnStall.stop:
            self._stop(
                StallError(
                    f"{found.summary}\n  watchdog.action=stop ended the run: look at the report, "
                    "then continue with resume=auto"
                )
            )
        elif self.action is OnStall.restart:
            asyncio.run_coroutine_threadsafe(self._restart_all(found.suspects), self.loop)

    def _stop(self, error: RlpostError) -> None:
        """End the run in order, or at once if its event loop takes no note."""
        noted = threading.Event()

        def cancel() -> None:
            noted.set()
            self.error = error
            self.task.cancel()

        self.loop.call_soon_threadsafe(cancel)
        if not noted.wait(_NOTICE_S):
            sys.stderr.write(f"{error}\nthe driver takes no note of it: killing the run\n")
            kill_all(1)

    async def _restart_all(self, names: Sequence[str]) -> None:
        try:
            for name in names:
                await self.restart(name)
        except RlpostError as error:
            self.error = error
            self.task.cancel()
