"""Hosts that are to reach each other: doors, who is named, and how long is waited."""

import asyncio
import logging
import re
import socket

import pytest

from actors import reach
from actors.doors import Address, Door, closed
from actors.reach import Reach
from rlpost.errors import ActorError, DeadlineError, LostError

HOSTS = ("127.0.0.1", "127.0.0.2")
NOBODY = Address(host="127.0.0.3", port=1, interface=None)


class Rank:
    """A learner rank without the rest of it, as the driver calls it.

    `error` is its answer; it reaches nobody the first `num_vain` times.
    """

    def __init__(self, number, host):
        self.name = f"learner-{number}"
        self.door = Door(host, "eth0")
        self.error = None
        self.num_vain = 0

    async def aside(self, verb, doors, *, timeout_s):
        assert verb == "closed"
        if self.error:
            raise self.error
        self.num_vain -= 1
        return [(door, "timed out") for door in doors] if self.num_vain >= 0 else closed(doors)


def between(ranks):
    return Reach(ranks, [rank.door.address for rank in ranks])


def told(found):
    return asyncio.run(found.broken())


def test_a_door_is_open_to_any_number_of_visitors_and_a_port_without_one_is_not():
    doors = [Door(host, None).address for host in HOSTS]
    assert closed(doors * 300) == []
    [(door, why)] = closed([*doors, NOBODY])
    assert door == NOBODY
    assert why == "Connection refused"


def test_a_door_that_nobody_answers_at_is_closed_after_a_while(monkeypatch):
    monkeypatch.setattr("actors.doors._ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        door = Address(host="127.0.0.1", port=full.getsockname()[1], interface=None)
        found = closed([door] * 8)
    assert found
    assert {why for _, why in found} == {"timed out"}


def test_hosts_that_reach_each_other_have_nothing_to_tell():
    assert told(between([Rank(number, host) for number, host in enumerate(HOSTS)])) == ""
    assert told(between([Rank(number, HOSTS[0]) for number in range(2)])) == ""
    assert told(Reach([], [])) == ""


def test_both_ends_of_a_broken_link_are_named_once_a_host():
    ranks = [Rank(0, HOSTS[0]), Rank(1, HOSTS[0]), Rank(2, HOSTS[1])]
    found = Reach(ranks, [ranks[0].door.address, ranks[1].door.address, NOBODY])
    said = told(found)
    assert said.startswith(
        "learner-0 (127.0.0.1, interface eth0) does not reach learner-2 (127.0.0.3, port 1): "
        "Connection refused; mend the link"
    )
    assert "learner-1" not in said
    ranks[0].error = DeadlineError("no answer")
    assert told(found) == ""


@pytest.fixture
def ranks(monkeypatch):
    """Two ranks on two hosts, which are asked often."""
    monkeypatch.setattr(reach, "_POLL_S", 0.05)
    return [Rank(number, host) for number, host in enumerate(HOSTS)]


def test_a_link_is_waited_for_and_said_to_be_once(ranks, caplog):
    ranks[0].num_vain = 3
    with caplog.at_level(logging.WARNING):
        asyncio.run(between(ranks).wait(60.0))
    assert ranks[0].num_vain == -1
    [said] = [record.message for record in caplog.records]
    assert said.startswith("waiting for at most 60 s: learner-0 (127.0.0.1, interface eth0) does ")


def test_neither_a_broken_link_nor_a_dead_rank_is_waited_for_without_end(ranks):
    broken = Reach(ranks, [ranks[0].door.address, NOBODY])
    late = re.escape("learner.start_timeout_s=0.1 s") + ".*learner-0 .* does not reach learner-1"
    with pytest.raises(ActorError, match=late):
        asyncio.run(broken.wait(0.1))
    ranks[1].error = LostError("learner-1 died")
    with pytest.raises(LostError, match="learner-1 died"):
        asyncio.run(broken.wait(60.0))
