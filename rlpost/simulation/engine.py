"""One inference engine as arithmetic: batched decoding, slots with a queue, prefill, pauses."""

import asyncio
import heapq
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from rlpost.simulation.clock import EARLY_S, virtual_loop

_EPSILON = 1e-9  # decode steps


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRates:
    """Seconds of one decode step, of each sequence in it, and of each token of a prefill."""

    decode_base_s: float
    decode_per_sequence_s: float = 0.0
    prefill_per_token_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What an engine has done and seen so far, in seconds and sums over them.

    `sequence_s` and `waiting_s` are the integrals of the sequences in the batch and in the queue.
    """

    busy_s: float = 0.0
    paused_s: float = 0.0
    sequence_s: float = 0.0
    waiting_s: float = 0.0
    most_waiting: int = 0
    num_steps: float = 0.0
    num_tokens: float = 0.0


@dataclass(slots=True, eq=False)
class _Request:
    """A group being sampled; `spans[i]` are sequence i's (tokens, version) in order."""

    prompt_tokens: int
    lengths: Sequence[int]
    done: asyncio.Future[None]
    left: int
    spans: list[list[tuple[int, int]]] = field(default_factory=list)
    prefilled: bool = False


class Engine:
    """Samples as an engine with continuous batching would, in virtual time.

    All sequences in the batch advance by a token in each decode step, which takes longer the more
    they are. Between two changes of the batch their progress is one multiplication, so an engine
    costs an event for each change and not for each token.

    Use: any number of overlapping `await generate(prompt_tokens, lengths)`; `await pause()` and
    `resume(version)` around new weights.
    """

    def __init__(self, rates: EngineRates, num_slots: int, *, in_flight: str = "keep") -> None:
        self.rates = rates
        self.num_slots = num_slots
        self.in_flight = in_flight
        self.loop = virtual_loop()
        self._now = self.loop.time()
        self._steps = 0.0
        self._prefill = 0.0  # tokens still to be prefilled; no decoding meanwhile
        self._running: list[tuple[float, int, float, _Request, int]] = []
        self._waiting: deque[tuple[_Request, int]] = deque()
        self._marks: list[tuple[float, int]] = []  # decode steps done when a version began
        self._paused = False
        self._serving = asyncio.Event()
        self._drained: asyncio.Event | None = None
        self._timer: asyncio.Handle | None = None
        self._count = 0
        self._busy_s = self._paused_s = self._sequence_s = self._waiting_s = 0.0
        self._tokens = 0.0
        self._most_waiting = 0

    async def generate(
        self, prompt_tokens: int, lengths: Sequence[int]
    ) -> list[list[tuple[int, int]]]:
        """Sample responses of these lengths; return each one's (tokens, version) spans."""
        await self._serving.wait()
        self._advance()
        request = _Request(prompt_tokens, lengths, self.loop.create_future(), len(lengths))
        request.spans = [[] for _ in lengths]
        self._waiting.extend((request, index) for index in range(len(lengths)))
        self._admit()
        self._most_waiting = max(self._most_waiting, len(self._waiting))
        self._plan()
        await request.done
        return request.spans

    async def pause(self) -> None:
        """Stop for new weights; with `in_flight=wait`, when what is being sampled has ended."""
        self._serving.clear()
        self._advance()
        if self.in_flight == "wait" and (self._running or self._waiting):
            self._drained = asyncio.Event()
            await self._drained.wait()
            self._drained = None
        self._paused = True
        self._plan()

    def resume(self, version: int) -> None:
        """Go on with weights of this version, which compute anew what is being sampled."""
        self._advance()
        self._paused = False
        self._marks.append((self._steps, version))
        oldest = min((start for _, _, start, _, _ in self._running), default=self._steps)
        del self._marks[: max(0, bisect_right(self._marks, oldest, key=lambda mark: mark[0]) - 1)]
        for _, _, start, request, _ in self._running:
            self._prefill += request.prompt_tokens + self._steps - start
        self._serving.set()
        self._admit()
        self._plan()

    def work(self) -> Work:
        """Return the work up to now."""
        self._advance()
        return Work(
            busy_s=self._busy_s,
            paused_s=self._paused_s,
            sequence_s=self._sequence_s,
            waiting_s=self._waiting_s,
            most_waiting=self._most_waiting,
            num_steps=self._steps,
            num_tokens=self._tokens,
        )

    def _plan(self) -> None:
        """Wake up again when the next sequence will have ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._running and not self._paused:
            self._timer = self.loop.call_at(self._due(), self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._advance()
        self._plan()

    def _step_s(self) -> float:
        return self.rates.decode_base_s + self.rates.decode_per_sequence_s * len(self._running)

    def _due(self) -> float:
        """Return when the next sequence ends if nothing changes."""
        prefill_s = self._prefill * self.rates.prefill_per_token_s
        left = max(0.0, self._running[0][0] - self._steps)
        return self._now + prefill_s + left * self._step_s()

    def _advance(self) -> None:
        """Bring the state to the present; the loop may be late, each end counts when it was due."""
        now = self.loop.time()
        while self._running and not self._paused:
            due = self._due()
            if due > now + EARLY_S:
                self._work_until(now)
                return
            self._work_until(due)
            self._steps = max(self._steps, self._running[0][0])
            self._end_sequences()
        self._pass(now - self._now)

    def _work_until(self, until: float) -> None:
        """Spend time on the prefill that is due, then on decoding, up to a moment."""
        prefill_s = min(self._prefill * self.rates.prefill_per_token_s, until - self._now)
        if self._prefill:
            done = self._prefill
            if self.rates.prefill_per_token_s:
                done = min(done, prefill_s / self.rates.prefill_per_token_s)
            self._prefill -= done
            self._pass(prefill_s)
        seconds = until - self._now
        if seconds > 0:
            steps = seconds / self._step_s()
            self._steps += steps
            self._tokens += steps * len(self._running)
            self._pass(seconds)

    def _pass(self, seconds: float) -> None:
        if seconds <= 0:
            return
        self._now += seconds
        self._busy_s += seconds if self._running and not self._paused else 0.0
        self._paused_s += seconds if self._paused else 0.0
        self._sequence_s += seconds * len(self._running)
        self._waiting_s += seconds * len(self._waiting)

    def _end_sequences(self) -> None:
        """Take those that have ended out of the batch, and let others in."""
        while self._running and self._running[0][0] <= self._steps + _EPSILON:
            finish, _, start, request, index = heapq.heappop(self._running)
            request.spans[index] = self._spans(start, finish)
            request.left -= 1
            if not request.left and not request.done.done():  # a cancelled waiter has it done
                request.done.set_result(None)
        self._admit()
        if self._drained is not None and not self._running and not self._waiting:
            self._drained.set()

    def _admit(self) -> None:
        """Fill free slots from the queue, first come first served."""
        while self._waiting and len(self._running) < self.num_slots and not self._paused:
            request, index = self._waiting.popleft()
            if not request.prefilled:  # the group's other samples find the prompt in the cache
                request.prefilled = True
                self._prefill += request.prompt_tokens
            self._count += 1
            finish = self._steps + request.lengths[index]
            heapq.heappush(self._running, (finish, self._count, self._steps, request, index))

    def _spans(self, start: float, finish: float) -> list[tuple[int, int]]:
        """Return (tokens, version) of a response sampled between two counts of decode steps."""
        first = max(0, bisect_right(self._marks, start, key=lambda mark: mark[0]) - 1)
        spans: list[tuple[int, int]] = []
        done = 0
        for (_, version), (until, _) in zip(
            self._marks[first:], [*self._marks[first + 1 :], (finish, 0)], strict=True
        ):
            tokens = round(min(until, finish) - start) - done
            if tokens > 0:
                spans.append((tokens, version))
                done += tokens
        return spans


def difference(end: Work, start: Work) -> Work:
    """Return the work between two moments; `most_waiting` is of all the time."""
    return Work(
        busy_s=end.busy_s - start.busy_s,
        paused_s=end.paused_s - start.paused_s,
        sequence_s=end.sequence_s - start.sequence_s,
        waiting_s=end.waiting_s - start.waiting_s,
        most_waiting=end.most_waiting,
        num_steps=end.num_steps - start.num_steps,
        num_tokens=end.num_tokens - start.num_tokens,
    )
