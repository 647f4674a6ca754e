"""The Kubernetes objects of a run: a RayJob, its volume claim, network policy and budgets."""

import shlex
from collections.abc import Sequence

from rlpost.cluster.groups import Group, worker_groups
from rlpost.cluster.kuberay_settings import KuberayConfig
from rlpost.cluster.overrides import train
from rlpost.cluster.pods import (
    HEAD,
    PART_LABEL,
    SUBMITTER,
    Values,
    claim_name,
    container_security,
    labels,
    ray_pod,
    submitter_pod,
    template,
)
from rlpost.cluster.settings import listed
from rlpost.errors import ConfigError
from rlpost.schema import RunConfig
from rlpost.simulation.rates import PREFIX

_DASHBOARD_PORT = 8265
_ALL = "0.0.0.0"  # noqa: S104 - of the pod, which the network policy and the token guard
_KUBERNETES_PORT = 6443
_KUEUE_LABEL = "kueue.x-k8s.io/queue-name"
COMMAND = "rlpost/command"


def render(
    config: RunConfig, cluster: KuberayConfig, overrides: Sequence[str]
) -> dict[str, Values]:
    """Return the objects by the file that each is written to.

    Raises:
        ConfigError: an actor does not fit a pod, or nothing would outlive the pods.
    """
    if not claim_name(cluster) and "://" not in (config.checkpoint.url or ""):
        raise ConfigError(
            f"{PREFIX}storage_gib=0 leaves checkpoints on disks that go with their pods: set "
            f"checkpoint.url to an object store, or {PREFIX}claim to a volume claim"
        )
    groups = worker_groups(config, cluster)
    grows = any(group.grows for group in groups)
    command = _entrypoint(cluster, overrides)
    interactive = cluster.kind == "cluster"
    found = {
        "network-policy.yaml": _network_policy(cluster, grows=grows),
        **_disruption_budgets(cluster, groups),
    }
    if interactive:
        found["raycluster.yaml"] = _interactive(cluster, groups, command)
    else:
        found["rayjob.yaml"] = _ray_job(cluster, groups, command)
    if claim_name(cluster) and not cluster.claim:
        found["volume-claim.yaml"] = _volume_claim(cluster)
    return found


def _entrypoint(cluster: KuberayConfig, overrides: Sequence[str]) -> str:
    """Return the command that the head runs."""
    run_dir = f"{cluster.mount}/runs/{cluster.name}"
    return shlex.join([*train(overrides, run_dir), "ray.address=auto"])


def _ray_job(cluster: KuberayConfig, groups: Sequence[Group], command: str) -> Values:
    deadline = {"activeDeadlineSeconds": cluster.deadline_s} if cluster.deadline_s else {}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _queued(cluster),
        "spec": {
            "entrypoint": command,
            "submissionMode": "K8sJobMode",
            "backoffLimit": cluster.backoff_limit,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": cluster.keep_s,
            **deadline,
            "submitterPodTemplate": template(cluster, SUBMITTER, submitter_pod(cluster)),
            "rayClusterSpec": _ray_cluster(cluster, groups),
        },
    }


def _interactive(cluster: KuberayConfig, groups: Sequence[Group], command: str) -> Values:
    """Return a RayCluster that runs nothing by itself; an annotation has the command for it."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _queued(cluster) | {"annotations": {COMMAND: command}},
        "spec": _ray_cluster(cluster, groups),
    }


def _queued(cluster: KuberayConfig) -> Values:
    """Return metadata by which Kueue or Volcano starts all pods together."""
    metadata = _metadata(cluster, cluster.name)
    if cluster.scheduler == "volcano":
        metadata["labels"] |= {"ray.io/scheduler-name": "volcano"}
    if cluster.queue:
        label = "volcano.sh/queue-name" if cluster.scheduler == "volcano" else _KUEUE_LABEL
        metadata["labels"] |= {label: cluster.queue}
    return metadata


def _ray_cluster(cluster: KuberayConfig, groups: Sequence[Group]) -> Values:
    grows = any(group.grows for group in groups)
    object_store = {"object-store-memory": str(cluster.object_store_bytes)}
    head_pod = ray_pod(cluster, None, talks_to_kubernetes=grows)
    autoscaling: Values = {"enableInTreeAutoscaling": grows}
    if grows:
        amounts = {"cpu": "500m", "memory": "1Gi"}
        autoscaling["autoscalerOptions"] = {
            "version": "v2",
            "idleTimeoutSeconds": 600,
            "resources": {"requests": amounts, "limits": dict(amounts)},
            "securityContext": container_security(),
        }
        head_pod["restartPolicy"] = "Never"  # what the autoscaler's second version asks for
    return {
        "rayVersion": cluster.ray_version,
        "authOptions": {"mode": "token", "secretName": cluster.token_secret},
        **autoscaling,
        "headGroupSpec": {
            # No actor on the head: its death ends the run, and it needs no GPU node.
            "rayStartParams": {"dashboard-host": _ALL, "num-cpus": "0"} | object_store,
            "template": template(cluster, HEAD, head_pod),
        },
        "workerGroupSpecs": [_worker_group(cluster, group, object_store) for group in groups],
    }


def _worker_group(cluster: KuberayConfig, group: Group, object_store: Values) -> Values:
    start = {
        "num-cpus": str(group.size.ray_cpus),
        "num-gpus": str(group.size.num_gpus),
    } | object_store
    pod = ray_pod(cluster, group, talks_to_kubernetes=False)
    if group.grows:
        pod["restartPolicy"] = "Never"
    return {
        "groupName": group.name,
        "labels": {"group": group.name},  # Ray's: a recipe's node_labels may name them
        "replicas": group.pods,
        "minReplicas": group.min_pods,
        "maxReplicas": group.max_pods,
        "rayStartParams": start,
        "template": template(cluster, group.name, pod),
    }


def _network_policy(cluster: KuberayConfig, *, grows: bool) -> Values:
    """Return who may speak: the run's own pods, KubeRay to the dashboard, names, some ports out."""
    own = {"podSelector": {"matchLabels": labels(cluster)}}
    operator = {
        "namespaceSelector": {
            "matchLabels": {"kubernetes.io/metadata.name": cluster.operator_namespace}
        },
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
    }
    ports = [int(port) for port in listed(cluster.egress_ports)]
    if grows:
        ports += [port for port in (443, _KUBERNETES_PORT) if port not in ports]
    names = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    egress: list[Values] = [{"to": [own]}, {"ports": names}]
    if ports:
        egress.append({"ports": [{"protocol": "TCP", "port": port} for port in ports]})
    dashboard = [{"protocol": "TCP", "port": _DASHBOARD_PORT}]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(cluster, cluster.name),
        "spec": {
            "podSelector": {"matchLabels": labels(cluster)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [own]}, {"from": [operator], "ports": dashboard}],
            "egress": egress,
        },
    }


def _disruption_budgets(cluster: KuberayConfig, groups: Sequence[Group]) -> dict[str, Values]:
    """Return how many pods must stay: of a group that grows what a run begins with, else all."""
    growing = [group for group in groups if group.grows]
    fixed = 1 + sum(group.pods for group in groups if not group.grows)  # 1 is the head
    others = [SUBMITTER, *(group.name for group in growing)]
    found = {"disruption-budget.yaml": _budget(cluster, cluster.name, fixed, "NotIn", others)}
    for group in growing:
        name = f"{cluster.name}-{group.name}"
        budget = _budget(cluster, name, group.min_pods, "In", [group.name])
        found[f"{group.name}-disruption-budget.yaml"] = budget
    return found


def _budget(
    cluster: KuberayConfig, name: str, stay: int, operator: str, parts: Sequence[str]
) -> Values:
    """Return a budget in pods that stay: for pods of a RayCluster no other kind is allowed."""
    chosen = {"key": PART_LABEL, "operator": operator, "values": list(parts)}
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(cluster, name),
        "spec": {
            "minAvailable": stay,
            "selector": {"matchLabels": labels(cluster), "matchExpressions": [chosen]},
        },
    }


def _volume_claim(cluster: KuberayConfig) -> Values:
    storage_class = {"storageClassName": cluster.storage_class} if cluster.storage_class else {}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _metadata(cluster, claim_name(cluster)),
        "spec": {
            "accessModes": ["ReadWriteMany"],  # all pods write into the run directory
            **storage_class,
            "resources": {"requests": {"storage": f"{cluster.storage_gib}Gi"}},
        },
    }


def _metadata(cluster: KuberayConfig, name: str) -> Values:
    return {"name": name, "namespace": cluster.namespace, "labels": labels(cluster)}
