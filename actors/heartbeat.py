"""Asks every actor for signs of life, so that one that hangs is found out and ended."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from actors.actor import Actor
from actors.witnesses import keep_stacks
from rlpost.errors import DeadlineError, RlpostError
from rlpost.schema import SupervisionConfig

_STACKS_S = 30.0  # to look at the processes of an actor, wherever it is
Lost = Callable[[Actor, int, str], None]


class Heartbeat:
    """Use: `watch(actor, lost)` once an actor has begun, `await close()` at the end.

    `lost(actor, life, cause)` is called once for a life that has ended: of itself, or because it
    gave no sign for too long and was killed, so that whoever waits for its answers is told.
    """

    def __init__(self, rules: SupervisionConfig, folder: Path) -> None:
        """`folder` is for the stacks of those that hang."""
        self.rules = rules
        self.folder = folder
        self._tasks: dict[Actor, asyncio.Task[None]] = {}

    def watch(self, actor: Actor, lost: Lost) -> None:
        """Watch this life of an actor."""
        if (before := self._tasks.get(actor)) is not None:
            before.cancel()
        self._tasks[actor] = asyncio.ensure_future(self._watch(actor, actor.life, lost))

    async def _watch(self, actor: Actor, life: int, lost: Lost) -> None:
        limit_s = self.rules.heartbeat_timeout_s
        cause = ""
        while not cause:
            await asyncio.sleep(self.rules.heartbeat_s)
            if actor.life != life:
                return
            asked_s = time.monotonic()
            try:
                await actor.aside("pulse", timeout_s=limit_s)
            except DeadlineError:
                if time.monotonic() - asked_s > 1.5 * limit_s:
                    continue  # the driver was held up itself, and may have missed the answer
                cause = (
                    f"{actor.place} gave no sign of life for supervision.heartbeat_timeout_s="
                    f"{limit_s:g} s and was killed: its stacks are {await self._stacks(actor)}"
                )
                actor.kill()
            except RlpostError as error:
                cause = str(error)
        if actor.life == life:
            lost(actor, life, cause)

    async def _stacks(self, actor: Actor) -> str:
        """Say where the stacks of an actor that hangs are kept, or why they are not."""
        try:
            async with asyncio.timeout(_STACKS_S):
                return f"in {await asyncio.to_thread(keep_stacks, actor, self.folder)}"
        except Exception as error:  # noqa: BLE001 - whatever keeps us from them, it must be ended
            return f"not known ({type(error).__name__}: {error})"

    async def close(self) -> None:
        """Watch nothing any more."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
