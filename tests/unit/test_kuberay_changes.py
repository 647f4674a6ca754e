"""A changed recipe, or setting, changes exactly the fields that it should."""

import re

import pytest
from kuberay_rendering import rendered


def flat(node, path=""):
    if isinstance(node, dict | list):
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        named = (
            (value.get("groupName", key) if isinstance(value, dict) else key, value)
            for key, value in pairs
        )
        return {k: v for key, value in named for k, v in flat(value, f"{path}/{key}").items()}
    return {path: node}


def changed(overrides, words=()):
    """Return the fields that overrides change, each without the common way to it."""
    before, after = flat(rendered()), flat(rendered(overrides=overrides, words=words))
    keys = {key for key in before | after if before.get(key) != after.get(key)}
    short = {
        re.sub(r"/(rayClusterSpec|workerGroupSpecs|template/spec|containers/0)(?=/)", "", key)
        for key in keys
    }
    return {key.removeprefix("/rayjob.yaml/spec/") for key in short}


def resources(group, *names):
    kinds = ("limits", "requests")
    return {f"{group}/resources/{kind}/{name}" for kind in kinds for name in names}


GPU = "nvidia.com/gpu"
VOLCANO = ("ray.io/scheduler-name", "volcano.sh/queue-name")


@pytest.mark.parametrize(
    ("overrides", "fields"),
    [
        (["steps=7"], {"entrypoint"}),
        (
            ["rollout.num_workers=8"],
            {"entrypoint", "rollout/rayStartParams/num-cpus", "rollout/rayStartParams/num-gpus"}
            | resources("rollout", "cpu", "memory", GPU),
        ),
        (
            ["rollout.num_workers=16"],
            {"entrypoint", "rollout/rayStartParams/num-cpus", "rollout/rayStartParams/num-gpus"}
            | {f"rollout/{name}" for name in ("replicas", "minReplicas", "maxReplicas")}
            | {"/disruption-budget.yaml/spec/minAvailable"}
            | resources("rollout", "cpu", "memory", GPU),
        ),
        (
            ["learner.num_ranks=8"],
            {"entrypoint", "learner/rayStartParams/num-cpus", "learner/rayStartParams/num-gpus"}
            | resources("learner", "cpu", "memory", GPU),
        ),
        (
            ["kl_coef=0.1"],  # 4 verifiers with a CPU each, and now a reference with 2
            {"entrypoint", "cpu/rayStartParams/num-cpus"} | resources("cpu", "cpu", "memory"),
        ),
    ],
)
def test_a_changed_recipe_changes_its_own_fields_alone(overrides, fields):
    assert changed(overrides) == fields


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ({"backoff_limit": "5"}, {"backoffLimit"}),
        ({"queue": "research"}, {"/rayjob.yaml/metadata/labels/kueue.x-k8s.io/queue-name"}),
        ({"scheduler": "volcano"}, {"/rayjob.yaml/metadata/labels/ray.io/scheduler-name"}),
        (
            {"scheduler": "volcano", "queue": "research"},
            {f"/rayjob.yaml/metadata/labels/{name}" for name in VOLCANO},
        ),
        ({"token_secret": "other"}, {"authOptions/secretName"}),
        ({"storage_gib": "9"}, {"/volume-claim.yaml/spec/resources/requests/storage"}),
    ],
)
def test_a_setting_changes_its_own_field_alone(words, fields):
    assert changed((), words) == fields
