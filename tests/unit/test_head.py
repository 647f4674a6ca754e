"""Ray's head, gone for a while or for good."""

import logging
import socket
import threading

import pytest

from actors.ending import Ending
from actors.head import watched_head
from rlpost.errors import LostError

PATIENCE_S = 30


@pytest.fixture
def head(monkeypatch):
    """A port that somebody listens on; who watches it gives up after 1.5 s."""
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "2")
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server


def test_a_head_that_is_gone_for_good_is_told_once_with_the_remedy(head, caplog):
    found, lost = [], threading.Event()

    def note(error):
        found.append(error)
        lost.set()

    port = head.getsockname()[1]
    with caplog.at_level(logging.WARNING), watched_head(f"127.0.0.1:{port}", note):
        head.close()
        assert lost.wait(PATIENCE_S)
    warning, last = (record.message for record in caplog.records)
    assert warning.startswith(f"Ray's head 127.0.0.1:{port} cannot be reached: Connection refused.")
    [error] = found
    assert last == str(error)
    assert isinstance(error, LostError)
    assert f"Ray's head 127.0.0.1:{port} could not be reached for" in str(error)
    assert "the same command with resume=auto" in str(error)


def test_a_head_that_comes_back_is_not_lost(head, monkeypatch):
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "40")
    monkeypatch.setattr("actors.head._QUESTIONS", 120)
    found, gone, back = [], threading.Event(), threading.Event()

    class Listener(logging.Handler):
        def emit(self, record):
            (back if "is there again" in record.getMessage() else gone).set()

    logger, listener = logging.getLogger("actors.head"), Listener()
    logger.addHandler(listener)
    host, port = head.getsockname()
    try:
        with watched_head(f"{host}:{port}", found.append):
            head.close()
            assert gone.wait(PATIENCE_S)
            with socket.create_server((host, port), backlog=64):
                assert back.wait(PATIENCE_S)
    finally:
        logger.removeHandler(listener)
    assert found == []


def test_a_run_that_failed_from_outside_is_cancelled_and_says_why():
    cancelled = threading.Event()
    with Ending() as ending:
        ending.cancels(cancelled.set)
        failing = threading.Thread(target=ending.fail, args=(LostError("the head is lost"),))
        failing.start()
        assert cancelled.wait(PATIENCE_S)
    failing.join(PATIENCE_S)
    assert not failing.is_alive()
    assert str(ending.error) == "the head is lost"
    assert ending.signal is None
