"""A rendered RayJob or RayCluster is what KubeRay's schemas take, unknown fields refused.

Not covered: no operator has seen the objects.
"""

import copy

import pytest
from jsonschema import Draft4Validator
from kuberay_rendering import COMBINATIONS, RECIPES, rendered
from kuberay_schemas import schema_of


def refused(schema, value):
    return [f"{'.'.join(map(str, e.path))}: {e.message}" for e in schema.iter_errors(value)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_rendering_is_valid_for_kuberay(recipe):
    jobs = Draft4Validator(schema_of("rayjob"))
    for overrides, words in COMBINATIONS:
        job = rendered(recipe, overrides, words)["rayjob.yaml"]
        assert not refused(jobs, job), (overrides, words)


def test_a_cluster_to_work_in_is_the_one_a_job_would_have():
    schema = Draft4Validator(schema_of("raycluster"))
    for overrides, words in COMBINATIONS:
        job = rendered(overrides=overrides, words=words)["rayjob.yaml"]
        objects = rendered(overrides=overrides, words=words | {"kind": "cluster"})
        found = objects["raycluster.yaml"]
        assert not refused(schema, found), (overrides, words)
        assert found["spec"] == job["spec"]["rayClusterSpec"]
        assert found["metadata"]["annotations"] == {"rlpost/command": job["spec"]["entrypoint"]}
        assert "rayjob.yaml" not in objects


def test_the_validator_refuses_unknown_and_mistyped_fields():
    schema = Draft4Validator(schema_of("rayjob"))
    job = rendered()["rayjob.yaml"]
    for path, value in [
        (("spec", "entrypont"), "x"),
        (("spec", "backoffLimit"), "3"),
        (("spec", "rayClusterSpec", "authOptions", "token"), "x"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "dnsPolcy"), "x"),
    ]:
        broken = copy.deepcopy(job)
        node = broken
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        assert refused(schema, broken), path
