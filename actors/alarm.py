"""How something that happens in the background ends what the driver waits for."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Alarm:
    """Use: `await alarm.watch(work)` around the work, `alarm.ring(error)` from anywhere else."""

    def __init__(self) -> None:
        self._rung: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def ring(self, error: BaseException) -> None:
        """End the work with this error; the first of several counts."""
        if not self._rung.done():
            self._rung.set_result(error)

    def forget(self, kind: type[BaseException]) -> None:
        """Be silent again if it was this kind of error that rang: it has been seen to already."""
        if self._rung.done() and isinstance(self._rung.result(), kind):
            self._rung = asyncio.get_running_loop().create_future()

    async def watch(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what the work returns; when the alarm rings, call the work off.

        Raises:
            BaseException: what the alarm was rung with; it is silent again then.
        """
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self._rung}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        error = self._rung.result()
        self._rung = asyncio.get_running_loop().create_future()
        raise error
