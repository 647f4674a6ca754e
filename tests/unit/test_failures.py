"""What of a failed call counts as the loss of an actor."""

import pytest
from ray.exceptions import ActorUnavailableError, RayTaskError

from actors.failures import told
from rlpost.errors import ActorError, LostError, WeightSyncError


def failed(cause):
    return told("learner-0 on node a", "update", RayTaskError("update", "traceback", cause))


@pytest.mark.parametrize(
    "said",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]",
        "[enforce fail at /pytorch/third_party/gloo/gloo/transport/tcp/x.cc] Timed out",
        "NCCL error in: ProcessGroupNCCL.cpp, remote process exited or network error",
        "CUDA error: an illegal memory access was encountered",
    ],
)
def test_a_process_that_lost_its_peer_or_its_device_is_lost_itself(said):
    error = failed(RuntimeError(said))
    assert type(error) is LostError
    assert str(error).startswith("learner-0 on node a failed in update: RuntimeError: ")


def test_an_actor_that_a_message_did_not_reach_is_lost_and_not_called_dead():
    error = told(
        "rollout-0 on node a", "generate", ActorUnavailableError("rpc_code: 14", b"0" * 16)
    )
    assert type(error) is LostError
    assert str(error).startswith("rollout-0 on node a could not be reached for generate: ")
    assert "rpc_code: 14" in str(error)


def test_a_mistake_of_the_program_is_no_loss():
    assert type(failed(ValueError("shapes differ"))) is ActorError


def test_an_error_of_ours_keeps_its_type():
    assert type(failed(WeightSyncError("1 altered"))) is WeightSyncError
