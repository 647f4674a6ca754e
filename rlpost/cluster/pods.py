"""Pods: what runs in them, what they mount, what they may do."""

from collections.abc import Mapping
from typing import Any

from rlpost.cluster.groups import Group
from rlpost.cluster.kuberay_settings import KuberayConfig
from rlpost.cluster.settings import listed

Values = dict[str, Any]
RUN_LABEL, PART_LABEL = "rlpost/run", "rlpost/part"
SUBMITTER, HEAD = "submitter", "head"
HEAD_CONTAINER = "ray-head"
_SUBMITTER_CPUS, _SUBMITTER_GIB = "500m", "1Gi"


def labels(cluster: KuberayConfig) -> Values:
    """Return the label by which everything of a run is found."""
    return {RUN_LABEL: cluster.name}


def ray_pod(cluster: KuberayConfig, group: Group | None, *, talks_to_kubernetes: bool) -> Values:
    """Return the template of a group's pods, or of the head's where there is no group."""
    num_gpus = group.size.num_gpus if group else 0
    amounts = {"cpu": str(group.size.num_cpus if group else cluster.head_cpus)}
    amounts["memory"] = (
        f"{group.size.memory_gib if group else cluster.head_gib + cluster.shm_gib}Gi"
    )
    if num_gpus:
        amounts[cluster.gpu_resource] = str(num_gpus)
    container = _container("ray-worker" if group else HEAD_CONTAINER, cluster, amounts) | {
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - the mount, not a file in it
            {"name": "data", "mountPath": cluster.mount},
        ]
    }
    shm = {"medium": "Memory", "sizeLimit": f"{cluster.shm_gib}Gi"}
    volumes = [{"name": "shm", "emptyDir": shm}, {"name": "data"} | _data(cluster)]
    return _pod(cluster, container, gpus=bool(num_gpus), token=talks_to_kubernetes) | {
        "volumes": volumes
    }


def submitter_pod(cluster: KuberayConfig) -> Values:
    """Return the template of the pod that hands the command to the head."""
    amounts = {"cpu": _SUBMITTER_CPUS, "memory": _SUBMITTER_GIB}
    container = _container("ray-job-submitter", cluster, amounts)
    del container["env"]  # the command runs on the head
    return _pod(cluster, container, gpus=False, token=False) | {"restartPolicy": "Never"}


def container_security() -> Values:
    """Return what no container may do."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
        "runAsNonRoot": True,
    }


def template(cluster: KuberayConfig, part: str, pod: Values) -> Values:
    """Return a pod's specification with the labels of the run and of its part in it."""
    return {"metadata": {"labels": labels(cluster) | {PART_LABEL: part}}, "spec": pod}


def _container(name: str, cluster: KuberayConfig, amounts: Mapping[str, str]) -> Values:
    return {
        "name": name,
        "image": cluster.image,
        "imagePullPolicy": "IfNotPresent",
        "env": _environment(cluster),
        "resources": {"requests": dict(amounts), "limits": dict(amounts)},
        "securityContext": container_security(),
    }


def _pod(cluster: KuberayConfig, container: Values, *, gpus: bool, token: bool) -> Values:
    pod: Values = {
        "automountServiceAccountToken": token,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": cluster.user,
            "runAsGroup": cluster.user,
            "fsGroup": cluster.user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }
    if selector := cluster.gpu_nodes if gpus else cluster.cpu_nodes:
        pod["nodeSelector"] = dict(selector)
    tolerations = listed(cluster.gpu_tolerations if gpus else cluster.cpu_tolerations)
    if tolerations:
        pod["tolerations"] = [_toleration(text) for text in tolerations]
    if cluster.pull_secret:
        pod["imagePullSecrets"] = [{"name": cluster.pull_secret}]
    return pod


def _data(cluster: KuberayConfig) -> Values:
    claim = claim_name(cluster)
    return {"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}


def claim_name(cluster: KuberayConfig) -> str:
    """Return the volume claim of the run directory; empty where there is none."""
    return cluster.claim or (f"{cluster.name}-data" if cluster.storage_gib else "")


def _environment(cluster: KuberayConfig) -> list[Values]:
    plain = {"HF_HOME": f"{cluster.mount}/huggingface"} | dict(cluster.env)
    found: list[Values] = [
        {"name": name, "value": value}
        for name, value in plain.items()
        if name not in cluster.secret_env
    ]
    for name, place in cluster.secret_env.items():
        secret, _, key = place.partition("/")
        reference = {"secretKeyRef": {"name": secret, "key": key}}
        found.append({"name": name, "valueFrom": reference})
    return found


def _toleration(text: str) -> Values:
    taint, _, effect = text.rpartition(":")
    key, equals, value = taint.partition("=")
    if equals:
        return {"key": key, "operator": "Equal", "value": value, "effect": effect}
    return {"key": key, "operator": "Exists", "effect": effect}
