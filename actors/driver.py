"""An async program on Ray, until it has ended or something ends it."""

import asyncio
from collections.abc import Awaitable, Callable

import ray

from actors.ending import Ending
from actors.head import watched_head
from actors.runtime import ray_runtime
from rlpost.errors import RlpostError
from rlpost.schema import RunConfig


def run(config: RunConfig, ending: Ending, program: Callable[[], Awaitable[None]]) -> int:
    """Run an async program on Ray; a signal cancels it and ends all actors.

    Returns the exit code: 0, or 130 after a signal.

    Raises:
        LostError: Ray's head is lost.
    """
    with ray_runtime(config.ray):
        return asyncio.run(_until(ending, program))


async def _until(ending: Ending, program: Callable[[], Awaitable[None]]) -> int:
    task = asyncio.ensure_future(program())
    loop = asyncio.get_running_loop()
    ending.cancels(lambda: loop.call_soon_threadsafe(task.cancel))
    with watched_head(ray.get_runtime_context().gcs_address, ending.fail):
        try:
            await task
        except (asyncio.CancelledError, RlpostError) as error:
            if ending.error is not None:
                raise ending.error from error
            if ending.signal is None or isinstance(error, RlpostError):
                raise
            return 130
    return 0
