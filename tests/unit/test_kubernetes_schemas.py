"""All that is sent to Kubernetes is what its own schemas take, in strict mode, pods included.

Kueue and Volcano are asked for by labels: no object of theirs is rendered.
"""

import copy
from pathlib import Path

import pytest
import yaml
from kuberay_rendering import COMBINATIONS, RECIPES, rendered
from kubernetes_schemas import VERSIONS, core_objects, problems

KUSTOMIZE = Path(__file__).parents[2] / "cluster" / "kustomize"
MAPS = ("annotations", "labels", "limits", "matchLabels", "nodeSelector", "requests")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_rendering_is_valid_for_kubernetes(recipe):
    kinds = set()
    assert len(COMBINATIONS) == 20
    for overrides, words in COMBINATIONS:
        for value in rendered(recipe, overrides, words).values():
            for core in core_objects(value):
                assert not problems(core), (overrides, words)
                kinds.add(core["kind"])
    assert kinds == {"NetworkPolicy", "PersistentVolumeClaim", "Pod", "PodDisruptionBudget"}


def test_a_cluster_to_work_in_is_valid_for_kubernetes():
    for overrides, words in COMBINATIONS:
        objects = rendered(overrides=overrides, words=words | {"kind": "cluster"})
        pods = core_objects(objects["raycluster.yaml"])
        assert len(pods) >= 4
        assert not [problem for pod in pods for problem in problems(pod)]


def test_files_for_kustomize_are_valid_for_kubernetes():
    found = [yaml.safe_load(path.read_text()) for path in KUSTOMIZE.rglob("*.yaml")]
    found = [
        value for value in found if value["kind"] != "Kustomization"
    ]  # which only kubectl reads
    assert len(found) == 8
    for value in found:
        assert not [problem for core in core_objects(value) for problem in problems(core)]


def mappings(node):
    """Yield every mapping whose keys are not free."""
    if isinstance(node, dict):
        yield node
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in pairs:
        if isinstance(value, dict | list) and key not in MAPS:
            yield from mappings(value)


def test_an_unknown_field_is_refused_wherever_it_is():
    words = {"env.A": "1", "secret_env.B": "hub/token", "pull_secret": "pull"}
    elastic = ["rollout.num_workers=16", "rollout.min_workers=4"]
    places = 0
    for value in rendered(overrides=elastic, words=words).values():
        for core in core_objects(value):
            for place, _ in enumerate(mappings(core)):
                broken = copy.deepcopy(core)
                list(mappings(broken))[place]["wrong"] = "x"
                refused = [f"{version}: " for version in VERSIONS]
                said = problems(broken)
                assert all(any(p.startswith(start) for p in said) for start in refused), broken
                places += 1
    assert places > 100


@pytest.mark.parametrize(
    ("file", "path", "value"),
    [
        ("volume-claim.yaml", ("spec", "accessModes"), "ReadWriteMany"),
        ("disruption-budget.yaml", ("spec", "minAvailable"), 1.5),
        ("network-policy.yaml", ("spec", "ingress"), {}),
        ("network-policy.yaml", ("kind",), "Networkpolicy"),
    ],
)
def test_a_mistyped_value_is_refused(file, path, value):
    broken = copy.deepcopy(rendered()[file])
    node = broken
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    assert problems(broken)
