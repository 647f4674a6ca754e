"""How many losses a run takes, and what it says of them."""

import json

import pytest

from rlpost.errors import ActorError
from rlpost.incidents import FILE, Incidents
from rlpost.schema import SupervisionConfig


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def incidents(tmp_path, clock):
    rules = SupervisionConfig(max_restarts=2, window_s=100.0)
    return Incidents(rules, tmp_path / "run", clock)


def test_one_loss_more_than_allowed_within_the_window_ends_the_run_with_its_history(
    incidents, clock
):
    for second, actor in ((0.0, "rollout-0"), (30.0, "reward-1")):
        clock.now = second
        incidents.note(actor, f"{actor} on node 10.0.0.1 died during generate: killed")
    clock.now = 90.0
    with pytest.raises(ActorError) as raised:
        incidents.note("rollout-0", "rollout-0 on node 10.0.0.1 died during start: out of memory")
    said = str(raised.value)
    assert "3 actors were lost within supervision.window_s=100 s" in said
    assert "supervision.max_restarts=2" in said
    assert "60 s ago: reward-1 on node 10.0.0.1 died during generate: killed" in said
    assert "0 s ago: rollout-0 on node 10.0.0.1 died during start: out of memory" in said
    assert "resume=auto" in said


def test_losses_out_of_the_window_are_forgiven(incidents, clock):
    for number in range(20):
        clock.now = number * 60.0
        incidents.note("rollout-0", "died")
    assert incidents.num_losses == 20


def test_the_file_tells_who_was_lost_and_for_how_long(incidents, clock, tmp_path):
    incidents.ended("reward-0")  # it was not lost
    incidents.note("rollout-0", "rollout-0 died")
    clock.now = 5.0
    incidents.note("rollout-0", "its successor died")
    assert incidents.away_s("rollout-0") == 5.0
    clock.now = 12.5
    incidents.ended("rollout-0")
    assert incidents.away_s("rollout-0") is None
    lines = [json.loads(line) for line in (tmp_path / "run" / FILE).read_text().splitlines()]
    assert [(line["event"], line["actor"]) for line in lines] == [
        ("lost", "rollout-0"),
        ("lost", "rollout-0"),
        ("back", "rollout-0"),
    ]
    assert lines[1]["cause"] == "its successor died"
    assert lines[2]["after_s"] == 12.5
