import io
import logging
import re

import pytest
from rich.console import Console as RichConsole

from rlpost.console import Console, headline, step_line

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
    assert screen.file.getvalue() == ""  # type: ignore[attr-defined]


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
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.file.getvalue())  # type: ignore[attr-defined]
    assert "quickstart: learn" in shown
    assert "1/4" in shown
    assert "reward 0.412" in shown
    assert "checkpoint written" in shown
    assert "quickstart: done" in shown
