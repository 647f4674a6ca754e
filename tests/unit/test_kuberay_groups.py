"""Pods are sized from the recipe: how many, how large, which of them may come and go."""

import pytest
from kuberay_rendering import IMAGE, groups_of, pod_of, rendered

from rlpost.cluster.kuberay import render
from rlpost.cluster.kubernetes import Kuberay
from rlpost.config import load
from rlpost.errors import ConfigError


def test_a_run_of_64_gpus_is_sized_as_by_hand():
    objects = rendered(
        overrides=["learner.num_ranks=32", "rollout.num_workers=32", "reward.num_workers=100"]
    )
    found = {
        name: (group["replicas"], *pod_of(group)["resources"]["limits"].values())
        for name, group in groups_of(objects).items()
    }
    # 8 GPUs and 8 x 4 CPUs a pod: 8 x 32 + 32 x 8 + 8 GiB; 100 verifiers in two pods of 50.
    assert found == {
        "learner": (4, "32", "520Gi", "8"),
        "rollout": (4, "32", "520Gi", "8"),
        "cpu": (2, "50", "408Gi"),
    }
    assert objects["disruption-budget.yaml"]["spec"]["minAvailable"] == 1 + 4 + 4 + 2


def test_ray_has_cpus_for_any_actor_beside_any_gpu():
    groups = groups_of(rendered(overrides=["learner.num_cpus=9"]))
    assert groups["rollout"]["rayStartParams"]["num-cpus"] == "36"
    assert pod_of(groups["rollout"])["resources"]["limits"]["cpu"] == "16"


def test_an_actor_may_ask_for_the_pods_of_its_group():
    labels = {"+learner.node_labels.group": "learner", "+rollout.node_labels.group": "rollout"}
    config = load("gsm8k_8gpu", [*(f"{k}={v}" for k, v in labels.items()), "ray.address=auto"])
    cluster = Kuberay(IMAGE, "run").cluster
    groups = groups_of(render(config, cluster, []))
    assert {name: group["labels"] for name, group in groups.items()} == {
        name: {"group": name} for name in ("learner", "rollout", "cpu")
    }
    config.rollout.node_labels = {"group": "gpu"}
    with pytest.raises(ConfigError, match="no node has the labels of rollout"):
        render(config, cluster, [])


def test_the_rollout_group_alone_grows():
    asked = ["rollout.num_workers=11", "rollout.min_workers=3"]
    objects = rendered(overrides=asked, words={"rollout_per_pod": "2"})
    bounds = {n: (g["minReplicas"], g["maxReplicas"]) for n, g in groups_of(objects).items()}
    assert bounds == {"learner": (1, 1), "rollout": (2, 6), "cpu": (1, 1)}
    assert groups_of(objects)["rollout"]["replicas"] == 2
    cluster = objects["rayjob.yaml"]["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"]
    assert not rendered()["rayjob.yaml"]["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"]


def test_kueue_and_a_number_of_pods_that_changes_exclude_each_other():
    asked = ["rollout.num_workers=16", "rollout.min_workers=4"]
    with pytest.raises(ConfigError, match="for which 1 of 2 pods do: Kueue admits"):
        rendered(overrides=asked, words={"queue": "research"})
    rendered(overrides=asked, words={"queue": "research", "scheduler": "volcano"})


def budgets_of(objects):
    """Return by file which parts of a run a budget is for, and how many of their pods must stay."""
    return {
        file: (expression["operator"], expression["values"], value["spec"]["minAvailable"])
        for file, value in objects.items()
        if value["kind"] == "PodDisruptionBudget"
        for expression in value["spec"]["selector"]["matchExpressions"]
    }


def test_no_pod_of_a_run_of_fixed_size_may_be_evicted():
    overrides = ["rollout.num_workers=32", "learner.num_ranks=16", "reward.num_workers=100"]
    budgets = budgets_of(rendered(overrides=overrides))
    # The head, 2 pods of 8 ranks, 4 of 8 engines, and 2 of 50 verifiers.
    assert budgets == {"disruption-budget.yaml": ("NotIn", ["submitter"], 1 + 2 + 4 + 2)}


def test_of_an_elastic_run_rollout_pods_beyond_the_least_may_be_evicted_and_no_other():
    overrides = ["rollout.num_workers=32", "rollout.min_workers=9", "learner.num_ranks=16"]
    objects = rendered(overrides=overrides)
    # No pod is in both: Kubernetes then evicts it for neither.
    assert budgets_of(objects) == {
        "disruption-budget.yaml": ("NotIn", ["submitter", "rollout"], 1 + 2 + 1),
        "rollout-disruption-budget.yaml": ("In", ["rollout"], 2),  # of 8 engines each
    }
    names = [v["metadata"]["name"] for v in objects.values() if v["kind"] == "PodDisruptionBudget"]
    assert names == ["gsm8k-8gpu-run", "gsm8k-8gpu-run-rollout"]  # one would replace the other
