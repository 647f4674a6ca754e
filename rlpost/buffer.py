"""Episodes on their way: begun as early as the bound on staleness allows, taken in order."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

Episode = TypeVar("Episode")


class StepBuffer(Generic[Episode]):
    """Holds the episodes of the steps that may have begun, at most `max_staleness + 1` of them.

    Step n trains on weights of version n - 1. Its episodes may begin once version
    n - 1 - max_staleness is served, so none of their tokens can be older than `max_staleness`
    versions when they are trained on, and nothing has to be dropped; and no more can be waiting
    than these steps hold. A prompt is drawn once, in order, and belongs to one step.

    Use: `begin(version)` whenever a version is served, `await take(step)` for step = 1, 2, ...,
    `await close()` at the end, however it comes.
    """

    def __init__(
        self,
        episodes: Callable[[int], Sequence[Coroutine[None, None, Episode]]],
        *,
        num_steps: int,
        max_staleness: int,
    ) -> None:
        """`episodes(step)` draws a step's prompts and returns what samples and scores them."""
        self._episodes = episodes
        self._num_steps = num_steps
        self._max_staleness = max_staleness
        self._begun = 0
        self._waiting: dict[int, list[asyncio.Task[Episode]]] = {}
        self._failed = asyncio.Event()
        self._error: BaseException | None = None

    @property
    def num_waiting(self) -> int:
        """Episodes that have begun and are not taken."""
        return sum(len(tasks) for tasks in self._waiting.values())

    @property
    def num_ready(self) -> int:
        """Episodes among them that have ended."""
        return sum(task.done() for tasks in self._waiting.values() for task in tasks)

    def begin(self, version: int) -> None:
        """Begin the episodes of every step that weights of this version may serve."""
        last = min(version + 1 + self._max_staleness, self._num_steps)
        while self._begun < last:
            self._begun += 1
            tasks = [asyncio.ensure_future(episode) for episode in self._episodes(self._begun)]
            self._waiting[self._begun] = tasks
            for task in tasks:
                task.add_done_callback(self._note)

    def _note(self, task: asyncio.Task[Episode]) -> None:
        """Remember a failure, so that it is told now and not when its step's turn comes."""
        if not task.cancelled() and task.exception() is not None:
            self._error = self._error or task.exception()
            self._failed.set()

    async def take(self, step: int) -> list[Episode]:
        """Wait for a step's episodes and return them in the order of their prompts.

        Raises:
            Exception: what an episode raised, of this step or of one begun after it.
        """
        tasks = self._waiting[step]
        ends: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(asyncio.wait(tasks)),
            asyncio.ensure_future(self._failed.wait()),
        ]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
        if self._error is not None:
            raise self._error
        del self._waiting[step]
        return [task.result() for task in tasks]

    async def settle(self) -> None:
        """Wait until all that has begun has ended."""
        await asyncio.gather(*(task for tasks in self._waiting.values() for task in tasks))

    async def close(self) -> None:
        """Cancel what has begun and wait until it has ended."""
        tasks = [task for tasks in self._waiting.values() for task in tasks]
        self._waiting.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
