"""Whose turn it is on the GPUs, or cores, that engines share with learner ranks."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import ray

from actors.actor import Actor
from rlpost.errors import DeadlineError
from rlpost.stalls.progress import Progress


class Turns:
    """The learner works by itself; engines may begin beside each other, but not beside it.

    An engine measures the memory that is free as it begins, and must find it as it will be.

    Use: `async with turns.learner: ...`, `async with turns.beginning(name, limit_s): ...`.
    """

    def __init__(self, progress: Progress) -> None:
        self.learner = asyncio.Lock()
        self.progress = progress
        self._entrance = asyncio.Lock()
        self._num_beginning = 0

    @asynccontextmanager
    async def beginning(self, name: str, limit_s: float) -> AsyncGenerator[None]:
        """Wait for the learner to finish what it does, and keep it waiting for this block.

        Raises:
            DeadlineError: it does not finish within `limit_s`.
        """
        what = f"to pause, for {name} to begin on its GPUs"
        try:
            with self.progress.waiting("learner-0", what, limit_s, advances=False):
                async with asyncio.timeout(limit_s):
                    await self._enter()
        except TimeoutError:
            raise DeadlineError(
                f"{name} waited {limit_s:g} s for the learner, whose GPUs it shares, to pause"
            ) from None
        try:
            yield
        finally:
            self._num_beginning -= 1
            if not self._num_beginning:
                self.learner.release()

    async def _enter(self) -> None:
        async with self._entrance:
            if not self._num_beginning:
                await self.learner.acquire()
            self._num_beginning += 1


async def gpus_of(ranks: Sequence[Actor], limit_s: float) -> list[str]:
    """Return the ids of the GPUs that Ray has given to learner ranks, none on CPU."""
    calls = (rank.call("__ray_call__", _gpus, timeout_s=limit_s) for rank in ranks)
    return [gpu for gpus in await asyncio.gather(*calls) for gpu in gpus]


def _gpus(_: Any) -> list[str]:
    return ray.get_runtime_context().get_accelerator_ids()["GPU"]
