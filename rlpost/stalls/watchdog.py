"""The watchdog: notices that nothing in a run advances, says what stands still, and acts."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rlpost.atomic import write_text
from rlpost.redaction import redact
from rlpost.stalls import stall
from rlpost.stalls.halting import HaltRecorder
from rlpost.stalls.progress import Mark, Progress
from rlpost.stalls.stall import Section, Witness

_ANSWER_S = 30.0  # for all witnesses together, each of whose own questions has seconds
_WRITE_S = 10.0
_ENDING_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """A run that stands still: for how long, the report's summary, and who seems to hold it up."""

    silent_s: float
    summary: str
    suspects: tuple[str, ...]


class Watchdog:
    """Watches a run's progress in a thread of its own: the event loop may be what stands still.

    After a report it is silent until something advances.

    Use: `with Watchdog(progress, folder, after_s, say, act) as watchdog:`, in it
    `watchdog.witnesses["Queues"] = ...` for what reports tell; `say` shows a line to people, and
    `act` does something about a stall. Both are called in the thread.
    """

    def __init__(
        self,
        progress: Progress,
        folder: Path,
        after_s: float,
        say: Callable[[str], object],
        act: Callable[[Stall], object],
    ) -> None:
        """`folder` takes the reports; nothing is watched when `after_s` is 0."""
        self.progress = progress
        self.folder = folder
        self.after_s = after_s
        self.say = say
        self.act = act
        self.witnesses: dict[str, Witness] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=stall.THREAD, daemon=True)

    def __enter__(self) -> Self:
        self.progress.mark("the watchdog has begun")
        if self.after_s:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self.after_s:
            self._thread.join(_ENDING_S)

    def _watch(self) -> None:
        tick_s = min(1.0, self.after_s / 5)
        reported: Mark | None = None
        with HaltRecorder(self.folder / "driver_halted.txt", self.after_s) as recorder:
            seen_s = time.monotonic()
            while not self._over.wait(tick_s):
                recorder.alive()
                late_s, seen_s = time.monotonic() - seen_s - tick_s, time.monotonic()
                if late_s > self.after_s / 2:
                    self._excuse(late_s, recorder)
                last = self.progress.last
                silent_s = self.progress.now() - last.at_s
                if reported is not None and last is not reported:
                    self._goes_on(reported, last)
                    reported = None
                if reported is None and silent_s >= self.after_s:
                    recorder.rest()
                    self.act(self._report(last, silent_s))
                    reported = last
                    seen_s = time.monotonic()

    def _excuse(self, late_s: float, recorder: HaltRecorder) -> None:
        """Start anew after the driver was stopped or kept busy: nobody could have advanced."""
        written = f": where it was is in {recorder.path}" if recorder.written() else ""
        self.say(f"watchdog: the driver itself stood still for {late_s:.0f} s{written}")
        self.progress.mark("the driver goes on")

    def _goes_on(self, reported: Mark, last: Mark) -> None:
        silent_s = last.at_s - reported.at_s
        self.say(
            f"watchdog: the run goes on after {silent_s:.0f} s: {last.what}; if it is often silent "
            f"so long, raise watchdog.after_s={self.after_s:g}"
        )

    def _report(self, last: Mark, silent_s: float) -> Stall:
        """Ask all witnesses, write what they say, and return it in short."""
        witnesses = {"Waited for": lambda: stall.waits(self.progress), **self.witnesses}
        sections = stall.ask(witnesses, _ANSWER_S)
        text, summary = stall.report(self.progress, last, sections)

        def write() -> Section:
            path = _free(self.folder)
            write_text(path, redact(text))
            return Section(text="", summary=(f"report: {path}",))

        # A disk may be what everything waits for.
        written = stall.ask({"report": write}, _WRITE_S)["report"]
        summary = redact("\n  ".join([summary, *written.summary]))
        self.say(f"watchdog: {summary}")
        halted = [name for section in sections.values() for name in section.halted]
        longest = [wait.part for wait in self.progress.waits()[:1]]
        suspects = tuple(dict.fromkeys(halted or longest))
        return Stall(silent_s=silent_s, summary=summary, suspects=suspects)


def _free(folder: Path) -> Path:
    """Return the next report's place; earlier parts of the run may have left some."""
    number = 1
    while (path := folder / f"stall_{number}.md").exists():
        number += 1
    return path
