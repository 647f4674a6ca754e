import pytest

from rlpost.timing import PhaseTimer


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_phases_sum_to_the_step() -> None:
    clock = Clock()
    timer = PhaseTimer(clock)
    clock.now += 1.0
    with timer.phase("rollout"):
        clock.now += 4.0
    clock.now += 0.5
    with timer.phase("learn"):
        clock.now += 2.0
    assert timer.values() == {
        "time/other_s": 1.5,
        "time/rollout_s": 4.0,
        "time/learn_s": 2.0,
        "time/step_s": 7.5,
    }


def test_an_inner_phase_stops_the_outer_clock() -> None:
    clock = Clock()
    timer = PhaseTimer(clock)
    with timer.phase("publish"):
        clock.now += 1.0
        with timer.phase("gather"):
            clock.now += 8.0
        clock.now += 2.0
    values = timer.values()
    assert (values["time/publish_s"], values["time/gather_s"]) == (3.0, 8.0)
    assert values["time/step_s"] == 11.0


def test_a_name_used_twice_adds_up() -> None:
    clock = Clock()
    timer = PhaseTimer(clock)
    for seconds in (1.0, 2.0):
        with timer.phase("learn"):
            clock.now += seconds
    assert timer.values()["time/learn_s"] == 3.0


def test_a_phase_that_raises_is_counted_and_closed() -> None:
    clock = Clock()
    timer = PhaseTimer(clock)

    def fail() -> None:
        with timer.phase("learn"):
            clock.now += 3.0
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        fail()
    clock.now += 1.0
    values = timer.values()
    assert (values["time/learn_s"], values["time/other_s"]) == (3.0, 1.0)
