"""A Ray actor as the driver sees it: a name that lasts, and the process that has it for now."""

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.failures import told
from rlpost.errors import DeadlineError
from rlpost.stalls.progress import Progress

_QUESTIONS = ("written", "__ray_call__")  # an answer to these is no progress of the run
PULSE = "pulse"  # the concurrency group of actors that do one thing at a time


@dataclass(slots=True, kw_only=True, eq=False)
class Actor:
    """One actor, with the name and node that its failures are reported under.

    `life` counts the processes that have had the name. `overlapping` says that the actor serves
    many calls at once; another has a thread of its own for its pulse.
    """

    name: str
    node: str
    node_id: str
    handle: Any
    overlapping: bool
    life: int = 1
    progress: Progress = field(default_factory=Progress)

    async def call(self, verb: str, *arguments: Any, timeout_s: float) -> Any:
        """Call a method and wait for its result; who stops waiting calls it off.

        Raises:
            DeadlineError: no answer within `timeout_s`.
            LostError: the actor died.
            ActorError: it raised something that is not an `RlpostError`.
        """
        reference = getattr(self.handle, verb).remote(*arguments)
        advances = verb not in _QUESTIONS
        with self.progress.waiting(self.name, verb, timeout_s, advances=advances):
            return await self._answer(reference, verb, timeout_s)

    async def aside(self, verb: str, *arguments: Any, timeout_s: float) -> Any:
        """Call a method whatever else the actor is doing, and wait for its result.

        Raises:
            DeadlineError: none came within `timeout_s`.
            LostError: the actor died.
        """
        method = getattr(self.handle, verb)
        if not self.overlapping:
            method = method.options(concurrency_group=PULSE)
        return await self._answer(method.remote(*arguments), verb, timeout_s)

    async def _answer(self, reference: Any, verb: str, timeout_s: float) -> Any:
        place = self.place
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.wrap_future(reference.future())
        except TimeoutError:
            raise DeadlineError(f"{place} did not finish {verb} within {timeout_s:g} s") from None
        except (RayActorError, RayTaskError) as error:
            raise told(place, verb, error) from error
        except asyncio.CancelledError:
            if self.overlapping:
                ray.cancel(reference)
            raise

    def kill(self) -> None:
        """End the process that has the name now."""
        with contextlib.suppress(Exception):
            ray.kill(self.handle)

    @property
    def place(self) -> str:
        """The actor and its node, as messages name them."""
        return f"{self.name} on node {self.node}"
