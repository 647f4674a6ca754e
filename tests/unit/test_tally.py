"""What the soak test counts from the files of runs that were struck."""

from collections import Counter

import pytest
from tally import as_text, read_tally

from rlpost.chaos import Fault

CHAOS = """\
{"unix_s": 1795985475.481, "step": 1, "phase": "learn", "actor": "learner-0", "life": 1, "kind": "stall"}
{"unix_s": 1795985479.402, "step": 4, "phase": "rollout", "actor": "reward-0", "life": 1, "kind": "freeze"}
{"unix_s": 1795985540.361, "step": 13, "phase": "learn", "actor": "rollout-1", "life": 1, "kind": "kill"}
{"unix_s": 1795985585.035, "step": 28, "phase": "publish", "actor": "rollout-1", "life": 3, "kind": "freeze_engine"}
{"unix_s": 1795985588.353, "step": 31, "phase": "learn", "actor": "reward-0", "life": 2, "kind": "freeze"}
{"unix_s": 1795985585.035, "step": 28, "phase": "publish", "actor": "rollout-1", "life": 3, \
"kind": "freeze_engine", "missed": "vLLM's engine is not there"}
"""  # noqa: E501 - lines as a run writes them
INCIDENTS = """\
{"unix_s": 1795985495.458, "event": "lost", "actor": "reward-0", "cause": "no sign of life"}
{"unix_s": 1795985501.459, "event": "back", "actor": "reward-0", "after_s": 6.0}
{"unix_s": 1795985512.1, "event": "leaves", "actor": "rollout-0", "cause": "its node is drained"}
{"unix_s": 1795985540.643, "event": "lost", "actor": "rollout-1", "cause": "rollout-1 died"}
{"unix_s": 1795985566.208, "event": "back", "actor": "rollout-1", "after_s": 25.565}
{"unix_s": 1795985590.0, "event": "lost", "actor": "reward-0", "cause": "no sign of life"}
"""
METRICS = """\
{"step": 0, "eval/largest_digit/pass@1": 0.0, "eval/largest_digit/unscored_count": 0.0}
{"step": 20, "faults/lost": 3.0, "eval/largest_digit/pass@1": 0.97}
{"step": 21, "faults/lost": 3.0}
"""
KINDS = ("stall", "freeze", "kill", "freeze_engine", "freeze", "kill", "kill_engine")
PLANNED = [
    Fault(step=step, phase="learn", delay_s=0.1, actor="rollout-0", kind=kind)
    for step, kind in enumerate(KINDS)
]


@pytest.fixture
def struck(tmp_path):
    (tmp_path / "chaos.jsonl").write_text(CHAOS)
    (tmp_path / "incidents.jsonl").write_text(INCIDENTS)
    (tmp_path / "metrics.jsonl").write_text(METRICS)
    return read_tally(tmp_path, PLANNED)


def row(planned, carried_out, missed, not_reached):
    return {
        "planned": planned,
        "carried_out": carried_out,
        "missed": missed,
        "not_reached": not_reached,
    }


def test_a_run_says_what_became_of_each_planned_fault(struck):
    assert struck.as_json() == {
        "faults": {
            "freeze": row(2, 2, 0, 0),
            "freeze_engine": row(1, 0, 1, 0),
            "kill": row(2, 1, 0, 1),
            "kill_engine": row(1, 0, 0, 1),
            "stall": row(1, 1, 0, 0),
        },
        "lost": 3,
        "back": 2,
        "back_s_mean": 15.8,
        "back_s_max": 25.565,
        "accuracy": 0.97,
    }


def test_every_planned_fault_has_one_outcome(struck):
    by_outcome = Counter()
    for (_, outcome), count in struck.faults.items():
        by_outcome[outcome] += count
    assert by_outcome == {"planned": 7, "carried_out": 4, "missed": 1, "not_reached": 2}


def test_tallies_of_several_runs_add_up(struck, tmp_path):
    nowhere = read_tally(tmp_path / "ended before it began", PLANNED)
    assert nowhere.as_json()["back_s_mean"] is None
    both = (struck + nowhere).as_json()
    assert both["faults"]["kill"] == row(4, 1, 0, 3)
    assert (both["lost"], both["back_s_mean"]) == (3, 15.8)


def test_the_printed_table_has_the_sums(struck):
    lines = as_text(struck).splitlines()
    assert lines[0].split() == ["planned", "carried", "out", "missed", "not", "reached"]
    assert lines[-2].split() == ["all", "7", "4", "1", "2"]
    assert (
        lines[-1]
        == "3 actors lost, 2 times one was back, after 15.8 s on average, 25.565 s at most"
    )
