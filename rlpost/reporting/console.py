"""The run as a person sees it: a live view on a terminal, one plain line a step elsewhere."""

import logging
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

log = logging.getLogger(__name__)


class View(Protocol):
    """Shows where a run is."""

    def phase(self, name: str) -> None:
        """Say what the run is doing now."""
        ...

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Show a finished step."""
        ...

    def message(self, text: str) -> None:
        """Show a line of text."""
        ...


class Console:
    """Shows where one run is.

    Use: `with Console(total_steps=60, title="quickstart") as view:`, then `view.phase("rollout")`,
    `view.step(1, values)` and `view.message("checkpoint written")`. `first_step` is the step that
    a resumed run continues from, so that the time left counts only what is still to do.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        title: str,
        first_step: int = 0,
        terminal: RichConsole | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_steps = total_steps
        self.title = title
        self._terminal = terminal or RichConsole()
        self._clock = clock
        self._started: tuple[float, int] | None = None
        self._step = first_step
        self._phase = "starting"
        self._spinner = Spinner("dots")
        self._shown: dict[str, float] = {}
        live = self._terminal.is_terminal and not self._terminal.is_dumb_terminal
        self._live = (
            Live(console=self._terminal, get_renderable=self._render, refresh_per_second=4)
            if live
            else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._phase = "stopped" if kind else "done"
            self._live.stop()

    def phase(self, name: str) -> None:
        """Say what the run is doing now."""
        self._phase = name

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Show a finished step; a value not reported by this step keeps its last one."""
        if self._started is None:
            # The pace counts from the first step shown: starting up is not part of it.
            self._started = (self._clock(), step)
        self._step = step
        self._shown |= headline(values)
        line = step_line(step, self.total_steps, self._shown, self._left_s())
        if self._live:
            self._live.refresh()
        else:
            log.info("%s", line)

    def message(self, text: str) -> None:
        """Show a line above the live view, or log it."""
        if self._live:
            self._terminal.print(Text(text))
        else:
            log.info("%s", text)

    def _left_s(self) -> float | None:
        """Return the seconds left at the pace so far, or None before the first step."""
        started_s, first_step = self._started or (0.0, self._step)
        done = self._step - first_step
        if done <= 0:
            return None
        return (self._clock() - started_s) / done * (self.total_steps - self._step)

    def _render(self) -> RenderableType:
        self._spinner.update(text=Text(f"{self.title}: {self._phase}"))
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(justify="right", no_wrap=True)
        bar.add_row(
            ProgressBar(total=max(self.total_steps, 1), completed=self._step),
            f"{self._step}/{self.total_steps}",
        )
        line = step_line(self._step, self.total_steps, self._shown, self._left_s())
        return Group(self._spinner, bar, Text(line))


class Board:
    """Shows where several runs are, a few of them at once.

    On a terminal: a bar for each that goes on and one for all; elsewhere a line for each that has
    ended. Use: `with Board(total_runs=75) as board:`, then
    `with board.run("clip, seed 0", total_steps=20) as view:`.
    """

    def __init__(
        self,
        *,
        total_runs: int,
        terminal: RichConsole | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        terminal = terminal or RichConsole()
        self.live = terminal.is_terminal and not terminal.is_dumb_terminal
        self._clock = clock
        self._total, self._ended, self._started_s = total_runs, 0, clock()
        columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn())
        self.bars = Progress(*columns, console=terminal, disable=not self.live, expand=True)
        self._all = self.bars.add_task("all runs", total=total_runs)

    def __enter__(self) -> Self:
        self._started_s = self._clock()
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    @contextmanager
    def run(self, title: str, total_steps: int) -> Generator[View]:
        """Show a run while the block lasts; count it when the block ends well."""
        bar = self.bars.add_task(title, total=total_steps)
        row = _Row(self, title, bar)
        try:
            yield row
        finally:
            self.bars.remove_task(bar)
        self._ended += 1
        left_s = (self._clock() - self._started_s) / self._ended * (self._total - self._ended)
        left = f"{timedelta(seconds=round(left_s))} left"
        self.bars.update(self._all, completed=self._ended, description=f"all runs, {left}")
        row.message(f"run {self._ended} of {self._total} has ended; {left}")


class _Row:
    """A run on a board."""

    def __init__(self, board: Board, title: str, bar: TaskID) -> None:
        self._board = board
        self._title = title
        self._bar = bar

    def phase(self, name: str) -> None:
        """Say what the run is doing now."""
        self._board.bars.update(self._bar, description=f"{self._title}: {name}")

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Move the run's bar."""
        del values
        self._board.bars.update(self._bar, completed=step)

    def message(self, text: str) -> None:
        """Show a line above the bars, or log it."""
        line = f"{self._title}: {text}"
        if self._board.live:
            self._board.bars.console.print(Text(line))
        else:
            log.info("%s", line)


def headline(values: Mapping[str, float]) -> dict[str, float]:
    """Return the few numbers of a step that a person follows, by their short names."""
    chosen: dict[str, float] = {}
    for name, value in values.items():
        if name == "reward/mean":
            chosen["reward"] = value
        elif name.startswith("eval/") and name.endswith("/pass@1"):
            chosen["accuracy"] = value
        elif name == "throughput/tokens_per_s":
            chosen["tokens/s"] = value
        elif name == "time/step_s":
            chosen["s/step"] = value
    return chosen


def step_line(step: int, total_steps: int, shown: Mapping[str, float], left_s: float | None) -> str:
    """Return one line about a step: `step 3/60  reward 0.412  accuracy 61.0%  ...`."""
    width = len(str(total_steps))
    parts = [f"step {step:>{width}}/{total_steps}"]
    if "reward" in shown:
        parts.append(f"reward {shown['reward']:.3f}")
    if "accuracy" in shown:
        parts.append(f"accuracy {shown['accuracy']:.1%}")
    if "tokens/s" in shown:
        parts.append(f"{shown['tokens/s']:,.0f} tokens/s")
    if "s/step" in shown:
        parts.append(f"{shown['s/step']:.1f} s/step")
    if left_s is not None:
        parts.append(f"{timedelta(seconds=round(left_s))} left")
    return "  ".join(parts)
