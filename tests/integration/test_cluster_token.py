"""A cluster that somebody else has started: rlpost comes in with a token, or not at all."""

import json
import subprocess
import sys

import pytest
from heads import TOKEN, ray_head

from actors.gathering import gather
from rlpost.errors import ResourceError

LIMIT_S = 600
LEAN = ("--num-cpus=1", "--include-dashboard=false")
CONNECT = """
import json, sys
from actors.runtime import ray_runtime
from rlpost.errors import ConfigError
from rlpost.schema import RayConfig

try:
    with ray_runtime(RayConfig(address=sys.argv[1], token_auth=json.loads(sys.argv[2]))):
        print("connected")
except ConfigError as error:
    print(error)
"""


def connect(address, environment, *, token_auth=True):
    done = subprocess.run(
        [sys.executable, "-c", CONNECT, address, json.dumps(token_auth)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def owner(environment, tmp_path):
    """The environment of a user without a token."""
    ours = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RLPOST_DRIVER")
    return {k: v for k, v in environment.items() if k not in ours} | {"HOME": str(tmp_path)}


def test_a_cluster_that_anyone_may_use_is_refused_unless_accepted(owner):
    with ray_head(owner | {"RAY_AUTH_MODE": "disabled"}, *LEAN) as address:
        assert "no token to show to the cluster. `ray get-auth-token" in connect(address, owner)
        said = connect(address, owner | {"RAY_AUTH_TOKEN": TOKEN})
        assert "this cluster asks for no token" in said
        assert "ray.token_auth=false" in said
        assert connect(address, owner, token_auth=False) == "connected"


def test_a_cluster_with_a_token_lets_in_who_has_it(owner):
    known = owner | {"RAY_AUTH_TOKEN": TOKEN}
    with ray_head(known | {"RAY_AUTH_MODE": "token"}, *LEAN) as address:
        assert connect(address, known) == "connected"
        said = connect(address, owner | {"RAY_AUTH_TOKEN": TOKEN[::-1]})
        assert "the cluster does not take our token. `ray get-auth-token" in said


def test_a_node_that_does_not_join_is_named(ray_session):
    gather(["127.0.0.1"], 1.0)
    with pytest.raises(ResourceError, match=r"^node7 did not join .* there are 127\.0\.0\.1"):
        gather(["127.0.0.1", "node7"], 0.1)
