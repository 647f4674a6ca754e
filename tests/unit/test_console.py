import io
import logging
import re

import pytest
from rich.console import Console as RichConsole

from rlpost.reporting.console import Board, Console, headline, step_line

VALUES = {
    "reward/mean": 0.4124,
    "reward/std": 0.2,
    "eval/sums/pass@1": 0.615,
    "throughput/tokens_per_s": 12345.6,
    "time/step_s": 3.21,
    "policy/loss": 0.1,
}


def terminal(*, live: bool) -> RichConsole:
    return RichConsole(
        file=io.StringIO(), force_terminal=live, width=100, _environ={"TERM": "xterm"}
    )


def shown_on(screen: RichConsole) -> str:
    assert isinstance(screen.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.file.getvalue())


def test_a_line_holds_what_a_person_follows() -> None:
    line = step_line(3, 60, headline(VALUES), 183.4)
    assert line == (
        "step  3/60  reward 0.412  accuracy 61.5%  12,346 tokens/s  3.2 s/step  0:03:03 left"
    )


def test_a_pipe_gets_one_plain_line_a_step(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    screen = terminal(live=False)
    with (
        caplog.at_level(logging.INFO),
        Console(total_steps=4, title="t", terminal=screen, clock=lambda: now[0]) as view,
    ):
        view.phase("rollout")
        view.step(0, {"eval/sums/pass@1": 0.5})
        now[0] = 10.0
        view.step(1, {"reward/mean": 0.25})
        view.message("checkpoint written")
    assert [record.getMessage() for record in caplog.records] == [
        "step 0/4  accuracy 50.0%",
        "step 1/4  reward 0.250  accuracy 50.0%  0:00:30 left",
        "checkpoint written",
    ]
    assert shown_on(screen) == ""


def test_the_time_left_of_a_resumed_run_counts_its_own_steps(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [0.0]
    view = Console(
        total_steps=100,
        title="t",
        first_step=90,
        terminal=terminal(live=False),
        clock=lambda: now[0],
    )
    with caplog.at_level(logging.INFO), view:
        now[0] = 1000.0  # a long start is no part of the pace
        view.step(90, {})
        now[0] = 1020.0
        view.step(92, {})
    assert caplog.records[1].getMessage().endswith("0:01:20 left")


def test_a_terminal_gets_a_live_view() -> None:
    screen = terminal(live=True)
    with Console(total_steps=4, title="quickstart", terminal=screen) as view:
        view.phase("learn")
        view.step(1, VALUES)
        view.message("checkpoint written")
    shown = shown_on(screen)
    assert "quickstart: learn" in shown
    assert "1/4" in shown
    assert "reward 0.412" in shown
    assert "checkpoint written" in shown
    assert "quickstart: done" in shown


def test_a_board_counts_the_runs_that_ended_well(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    board = Board(total_runs=3, terminal=terminal(live=False), clock=lambda: now[0])
    with caplog.at_level(logging.INFO), board:
        with board.run("clip, seed 0", total_steps=2) as view:
            view.phase("rollout")
            view.step(2, {})
            view.message("reward 0.1 -> 0.2")
            now[0] = 30.0
        with pytest.raises(ValueError, match="stop"), board.run("mhpo, seed 0", total_steps=2):
            raise ValueError("stop")
    assert [record.getMessage() for record in caplog.records] == [
        "clip, seed 0: reward 0.1 -> 0.2",
        "clip, seed 0: run 1 of 3 has ended; 0:01:00 left",
    ]


def test_a_board_on_a_terminal_has_a_bar_for_each_run() -> None:
    screen = terminal(live=True)
    with (
        Board(total_runs=2, terminal=screen) as board,
        board.run("clip", total_steps=4) as one,
        board.run("mhpo", total_steps=4) as other,
    ):
        one.phase("rollout")
        one.step(3, {})
        other.phase("learn")
        other.message("warm")
        board.bars.refresh()
    shown = shown_on(screen)
    assert "clip: rollout" in shown
    assert "3/4" in shown
    assert "mhpo: learn" in shown
    assert "mhpo: warm" in shown
    assert "all runs, 0:00:00 left" in shown
    assert "2/2" in shown
