"""Episodes on their way: begun as early as staleness allows, taken a step's worth at a time."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from rlpost.episodes import Episode, episode_of, plain
from rlpost.errors import RlpostError
from rlpost.schema import RunConfig
from rlpost.types import Prompt

Draw = Callable[[int], Sequence[Prompt]]
Sample = Callable[[Prompt, int], Coroutine[None, None, Episode]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferPlan:
    """How many episodes may be under way, and how many may be replaced.

    `oversampling` bounds those under way, as a multiple of a step's; None leaves that to
    `max_staleness` and gives each step its own prompts, in order. `max_replacements` is a step's
    number of episodes without signal that others replace.
    """

    per_step: int
    num_steps: int
    max_staleness: int = 0
    oversampling: float | None = None
    max_replacements: int = 0


def buffer_plan(config: RunConfig) -> BufferPlan:
    """Return a recipe's plan."""
    return BufferPlan(
        per_step=config.prompts_per_step,
        num_steps=config.steps,
        max_staleness=config.staleness_bound,
        oversampling=config.oversampling,
        max_replacements=config.max_replacements,
    )


@dataclass(slots=True, kw_only=True, eq=False)
class Slot:
    """An episode's place: whose draw it belongs to, and since which version it is under way.

    `rank` counts the ends since the start of the run; None while it is under way.
    """

    prompt: Prompt
    step: int
    version: int = -1
    rank: int | None = None
    task: asyncio.Future[Episode] = field(init=False)


class EpisodeBuffer:
    """Holds the episodes that are under way or wait to be trained on.

    Step n trains on weights of version n - 1. An episode begun at version b is taken by step
    b + 1 + max_staleness at the latest, so none of its tokens can be older than `max_staleness`
    versions then, and nothing has to be dropped for its age. Never more are held than the steps
    hold that this bound lets begin.

    Without `oversampling` each step waits for its own prompts. With it, whichever end first are
    taken, and stragglers go on into later steps, until their age lets them wait no longer.

    An episode without signal is replaced by one of the next prompt, as it ends; without
    `oversampling`, when all of its step have ended, so that the order of prompts depends on
    nothing but the rewards.

    Use: `begin(version)` whenever a version is served, `await take(step)` for step = 1, 2, ...,
    `await close()` at the end, however it comes.
    """

    def __init__(self, draw: Draw, sample: Sample, plan: BufferPlan) -> None:
        """`draw(count)` returns the next prompts, `sample(prompt, step)` runs an episode."""
        self.plan = plan
        self.version = -1
        self.slots: list[Slot] = []  # in the order in which they were drawn
        self._draw = draw
        self._sample = sample
        self._in_order = plan.oversampling is None
        self._step = 1  # that takes next
        self._num_begun = 0
        self._num_taken = 0
        self._num_ended = 0
        self._unfinished: Counter[int] = Counter()  # by step
        self._num_replaced: Counter[int] = Counter()  # likewise
        self._replaced: list[Episode] = []
        self._changed = asyncio.Event()
        self._error: BaseException | None = None

    @property
    def num_waiting(self) -> int:
        """Episodes that have begun and are not taken."""
        return len(self.slots)

    @property
    def num_ready(self) -> int:
        """Episodes among them that have ended."""
        return len(self.slots) - self._unfinished.total()

    def begin(self, version: int) -> None:
        """Begin every episode that weights of this version may serve."""
        self.version = version
        for prompt in self._draw(max(0, self._limit() - self._num_begun)):
            step = self._num_begun // self.plan.per_step + 1
            self._num_begun += 1
            slot = Slot(prompt=prompt, step=step)
            self.slots.append(slot)
            self._start(slot)

    def _limit(self) -> int:
        """Return how many episodes may have begun since the start of the run."""
        plan = self.plan
        last = min(self.version + 1 + plan.max_staleness, plan.num_steps)
        limit = last * plan.per_step
        if self._in_order:
            return limit
        return min(limit, self._num_taken + ceil((plan.oversampling or 1.0) * plan.per_step))

    def _start(self, slot: Slot) -> None:
        slot.version, slot.rank = self.version, None
        slot.task = asyncio.ensure_future(self._sample(slot.prompt, slot.step))
        slot.task.add_done_callback(lambda task: self._ended(slot, task))
        self._unfinished[slot.step] += 1

    def _ended(self, slot: Slot, task: asyncio.Future[Episode]) -> None:
        """Note an end; a failure is told now, and not when its step's turn comes."""
        if task.cancelled():
            return
        self._error = self._error or task.exception()
        if task.exception() is None:
            slot.rank = self._num_ended
            self._num_ended += 1
            self._unfinished[slot.step] -= 1
            if not self._unfinished[slot.step]:
                del self._unfinished[slot.step]
            try:
                self._replace_silent(slot)
            except RlpostError as error:  # no further prompt: nobody else would hear of it
                self._error = self._error or error
        self._changed.set()

    def _replace_silent(self, ended: Slot) -> None:
        """Begin others in the place of episodes without signal, within the bound."""
        if not self.plan.max_replacements or (self._in_order and ended.step in self._unfinished):
            return
        step = ended.step if self._in_order else self._step
        for slot in [s for s in self.slots if s.step == step] if self._in_order else [ended]:
            if not slot.task.result().has_signal:
                if self._num_replaced[step] == self.plan.max_replacements:
                    return
                self._num_replaced[step] += 1
                self._replaced.append(slot.task.result())
                [slot.prompt] = self._draw(1)
                self._start(slot)

    async def take(self, step: int) -> tuple[list[Episode], list[Episode]]:
        """Wait for a step's episodes; return them as drawn, and those replaced since the last call.

        Raises:
            Exception: what an episode raised, whichever step it is for.
        """
        assert self._num_begun >= step * self.plan.per_step, "begin() comes before take()"
        self._step = step
        while (chosen := self._chosen()) is None:
            await self._change()
        taken = set(chosen)
        self.slots = [slot for slot in self.slots if slot not in taken]
        self._num_taken += len(chosen)
        self._num_replaced.pop(step, None)
        self._step = step + 1
        replaced, self._replaced = self._replaced, []
        self.begin(self.version)
        return [slot.task.result() for slot in chosen], replaced

    def _chosen(self) -> list[Slot] | None:
        """Return the step's slots in the order of their draw, None while they are not complete."""
        if self._error is not None:
            raise self._error
        if self._in_order:
            complete = self._step not in self._unfinished
            return [slot for slot in self.slots if slot.step == self._step] if complete else None
        if self.num_ready < self.plan.per_step:
            return None
        oldest = self._step - 1 - self.plan.max_staleness
        if any(slot.rank is None and slot.version <= oldest for slot in self.slots):
            return None
        ended = [slot for slot in self.slots if slot.rank is not None]
        ended.sort(key=lambda slot: (slot.version > oldest, slot.rank))
        first = set(ended[: self.plan.per_step])
        return [slot for slot in self.slots if slot in first]

    async def settle(self) -> None:
        """Wait until all that has begun has ended."""
        while self._error is None and self._unfinished.total():
            await self._change()

    def state_dict(self) -> dict[str, Any]:
        """Return what it holds as JSON: episodes that have ended whole, of others the prompt."""
        return {
            "version": self.version,
            "step": self._step,
            "begun": self._num_begun,
            "taken": self._num_taken,
            "ended": self._num_ended,
            "replacements": {str(step): count for step, count in self._num_replaced.items()},
            "replaced": [plain(episode) for episode in self._replaced],
            "slots": [
                {
                    "prompt": slot.prompt.id,
                    "step": slot.step,
                    "version": slot.version,
                    "rank": slot.rank,
                    "episode": plain(slot.task.result()) if slot.rank is not None else None,
                }
                for slot in self.slots
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any], prompts: Mapping[str, Prompt]) -> None:
        """Hold what `state_dict` returned; what had not ended is sampled anew.

        `prompts` has, by their ids, at least those of the state. Weights of the state's version
        must be served.
        """
        self.version, self._step = state["version"], state["step"]
        self._num_begun, self._num_taken = state["begun"], state["taken"]
        self._num_ended = state["ended"]
        self._num_replaced = Counter({int(n): k for n, k in state["replacements"].items()})
        self._replaced = [episode_of(one, prompts) for one in state["replaced"]]
        for one in state["slots"]:
            slot = Slot(prompt=prompts[one["prompt"]], step=one["step"])
            self.slots.append(slot)
            if one["episode"] is None:
                self._start(slot)
                continue
            slot.version, slot.rank = one["version"], one["rank"]
            slot.task = asyncio.get_running_loop().create_future()
            slot.task.set_result(episode_of(one["episode"], prompts))

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def close(self) -> None:
        """Cancel what has begun and wait until it has ended."""
        tasks = [slot.task for slot in self.slots]
        self.slots.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
