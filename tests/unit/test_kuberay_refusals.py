"""Settings, overrides and words that cannot hold are refused with a remedy."""

import re

import pytest
from kuberay_rendering import rendered

from rlpost.cluster.command import read_words
from rlpost.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"image": "team/rlpost:latest"}, "name a fixed tag"),
        ({"image": "team/rlpost"}, "must have a fixed tag"),
        ({"image": "registry:5000/rlpost"}, "must have a fixed tag"),
        ({"image": "team/rlpost@sha256:12"}, "must have a fixed tag or a sha256"),
        ({"image": ""}, "image is required"),
        ({"imag": "x"}, "did you mean cluster.image"),
        ({"env": "x"}, "unknown field cluster.env; did you mean cluster.env.NAME"),
        ({"name": "Not_A_Name"}, "name must be small letters"),
        ({"user": "0"}, "user must be at least 1, got 0: 0 is root"),
        ({"node_gpus": "many"}, "node_gpus must be a whole number of 0 or more, got many"),
        ({"kind": "service"}, "kind must be job or cluster, got service"),
        ({"scheduler": "yunikorn"}, "scheduler must be kueue or volcano"),
        ({"mount": "data"}, "mount must be an absolute path"),
        ({"gpu_tolerations": "gpu"}, "gpu_tolerations must be KEY"),
        ({"egress_ports": "99999"}, "egress_ports must be ports"),
        ({"env.RAY_AUTH_TOKEN": "x"}, "Ray's token is the target's own matter"),
        (
            {"node_gpus": "0"},
            "learner.num_gpus=1 of one actor is more than the 0 that cluster.node_gpus leaves",
        ),
        ({"storage_gib": "0"}, "leaves checkpoints on disks that go with their pods"),
    ],
)
def test_a_wrong_setting_is_refused_with_a_remedy(words, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        rendered(words=words)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run_dir=/tmp/x"], "run_dir is decided by the cluster"),
        (["resume=never"], "resume is decided by the cluster"),
        (["task.prompt_template={question}$(id)"], "put this value into a recipe"),
    ],
)
def test_an_override_that_cannot_hold_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        rendered(overrides=overrides)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out=x"], "cluster=(not set): available: kuberay, slurm, ray, local"),
        (["cluster=nomad", "out=x"], "cluster=nomad: available: kuberay"),
        (["cluster=kuberay", "out=x", "--rendered"], "expected rlpost submit"),
    ],
)
def test_a_command_is_read_whole(words, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_words(words)
