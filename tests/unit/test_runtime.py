"""Ray on a machine so slow that Ray gives its own start up."""

import subprocess

import psutil
import pytest

from actors import runtime
from rlpost.errors import ActorError
from rlpost.schema import RayConfig


@pytest.fixture
def left(monkeypatch):
    """Let `ray.init` fail some times, as it does when its agent is late; return what it left.

    Only that failure is put on: a whole start of Ray is what the integration tests begin with.
    """
    processes = []

    def put_on(failures):
        def init(**_):
            if len(processes) < failures:
                processes.append(subprocess.Popen(["sleep", "600"]))
                raise Exception("The current node timed out during startup.")  # noqa: TRY002 - as Ray does

        monkeypatch.setattr(runtime.ray, "init", init)
        monkeypatch.setattr(runtime, "_internal_kv_put", lambda *_, **__: None)
        return processes

    return put_on


def assert_gone(processes):
    assert not [process.pid for process in processes if psutil.pid_exists(process.pid)]
    for process in processes:
        process.wait()


def test_a_start_that_fails_is_tried_again_and_leaves_nothing(left, caplog):
    processes = left(2)
    other = subprocess.Popen(["sleep", "600"])
    with runtime.ray_runtime(RayConfig()):
        assert len(processes) == 2
        assert_gone(processes)
        assert other.poll() is None
    other.kill()
    other.wait()
    assert caplog.text.count("trying again") == 2


def test_a_start_that_always_fails_says_so(left):
    processes = left(99)
    said = r"in 3 attempts: The current node timed out.*raylet.out"
    with pytest.raises(ActorError, match=said), runtime.ray_runtime(RayConfig()):
        pytest.fail("there is no Ray")
    assert_gone(processes)
