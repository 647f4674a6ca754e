"""What is seen of real processes from outside: with py-spy, by a signal, or neither."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from rlpost.stalls import processes

BUSY = """
import ctypes, subprocess, sys
{}
def stuck_in_c():
    while True:
        ctypes.PyDLL(None).sleep(60)  # keeps the interpreter to itself
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("ready", flush=True)
stuck_in_c()
"""
ANSWERING = "from rlpost.stalls.stack_signal import answer_signal; answer_signal()"


@contextmanager
def started(promise=ANSWERING):
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY.format(promise)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.fixture
def no_ptrace(tmp_path, monkeypatch):
    """A py-spy that says what it says in a container without that right."""
    program = tmp_path / "py-spy"
    program.write_text("#!/bin/sh\necho 'Error: Permission Denied' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(processes, "py_spy", lambda: str(program))


def test_a_process_and_its_child_are_seen_with_their_stacks():
    with started() as pid:
        sights = processes.look_at({"learner-0": pid})
    assert [sight.name for sight in sights] == ["learner-0", "learner-0"]
    own, child = sights
    assert own.pid == pid
    assert "stuck_in_c" in own.stack
    assert "time.sleep" in child.command
    assert "<module>" in child.stack
    assert not own.halted


def test_without_ptrace_a_process_stuck_in_c_answers_the_signal(no_ptrace):
    with started() as pid:
        first, second = processes.stack_of(pid), processes.stack_of(pid)
    assert "stuck_in_c" in first
    assert "most recent call first" in first
    assert second == first  # and not both


def test_who_has_not_promised_to_answer_is_not_sent_a_signal(no_ptrace):
    """It would die of it."""
    with started(promise="") as pid:
        stack = processes.stack_of(pid)
        time.sleep(0.1)
        assert processes.look_at({"a": pid})[0].state[0] in "SRD"
    assert "py-spy: Error: Permission Denied" in stack
    assert "has not promised to answer" in stack


def test_a_stopped_process_is_called_so_and_how_to_let_it_go_on(no_ptrace):
    with started() as pid:
        os.kill(pid, signal.SIGSTOP)
        while processes.look_at({"a": pid})[0].state[0] != "T":
            time.sleep(0.01)
        own = processes.look_at({"a": pid})[0]
        assert own.state == "T (stopped)"
        assert own.halted == f"a signal has stopped it: `kill -CONT {pid}` lets it go on"
        assert "cannot answer a signal" in own.stack
        assert "most recent call first" not in own.stack


def test_a_process_that_is_gone_is_told():
    with started() as pid:
        pass
    [sight] = processes.look_at({"reward-0": pid})
    assert (sight.state, sight.halted) == ("gone", "it is gone")
