"""What `cluster.*` says of the cluster that a run is rendered for."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from math import isfinite
from typing import Any

from rlpost.errors import ConfigError
from rlpost.redaction import is_secret_name, redact
from rlpost.simulation.rates import PREFIX, unknown_field

_DNS = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[-._A-Za-z0-9]+")
_TOLERATION = re.compile(r"[^\s:=]+(=[^\s:=]*)?:(NoSchedule|PreferNoSchedule|NoExecute)")
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?")
_TAG = re.compile(r"[\w][\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MAX_NAME = 47  # of a RayJob: KubeRay adds to it for the names of its pods


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Fields that `cluster.*` sets; sizes in GiB, times in seconds; see cluster/README.md."""

    image: str  # with a fixed tag, or a digest
    name: str  # of the RayJob, and of the run directory
    namespace: str = "default"
    ray_version: str = "2.60.0"  # the image's
    pull_secret: str = ""
    user: int = 1000  # the image's, not root; also the group that owns the volume
    token_secret: str = "rlpost-ray-token"  # a Secret with the key auth_token
    operator_namespace: str = "kuberay-system"
    queue: str = ""  # Kueue's LocalQueue
    pod_cpus: int = 64  # the most that a pod may ask for
    pod_gpus: int = 8
    gib_per_cpu: float = 8.0  # of an actor's CPUs and GPUs, beside /dev/shm
    gib_per_gpu: float = 32.0
    shm_gib: int = 8  # of each pod: half for Ray's object store
    head_cpus: int = 4
    head_gib: int = 16
    rollout_per_pod: int = 0  # engines in a pod; 0: as many as fit
    rollout_min_pods: int = 0  # 0: what the recipe needs
    rollout_max_pods: int = 0  # likewise; more switches autoscaling on
    gpu_resource: str = "nvidia.com/gpu"
    gpu_tolerations: str = "nvidia.com/gpu:NoSchedule"  # KEY[=VALUE]:EFFECT, by commas
    cpu_tolerations: str = ""
    mount: str = "/data"
    claim: str = ""  # a PersistentVolumeClaim that is there already
    storage_class: str = ""  # else one is made: its class, and its size; 0: none
    storage_gib: int = 200
    egress_ports: str = "443"  # of the world outside, by commas; empty: none
    backoff_limit: int = 3  # new clusters after a failure, each with resume=auto
    deadline_s: int = 0  # of the whole job; 0: none
    keep_s: int = 600  # the finished cluster, for its logs
    env: Mapping[str, str] = field(default_factory=dict)  # cluster.env.NAME=VALUE
    secret_env: Mapping[str, str] = field(default_factory=dict)  # NAME=SECRET/KEY
    gpu_nodes: Mapping[str, str] = field(default_factory=dict)  # node labels of pods with GPUs
    cpu_nodes: Mapping[str, str] = field(default_factory=dict)  # and of those without


_KINDS: dict[str, Any] = {part.name: part.type for part in fields(ClusterConfig)}
_MAPS = ("env", "secret_env", "gpu_nodes", "cpu_nodes")


def read_settings(words: Mapping[str, str], name: str) -> ClusterConfig:
    """Return the settings that words without their `cluster.` say; `name` where they say none.

    Raises:
        ConfigError: an unknown field, a value that Kubernetes or a rule of ours does not take.
    """
    values: dict[str, Any] = {"name": name}
    for word, text in words.items():
        part, dot, key = word.partition(".")
        if part not in _KINDS or (part in _MAPS) != bool(dot and key):
            known = [f"{known}.NAME" if known in _MAPS else known for known in _KINDS]
            raise unknown_field(word, known)
        if part in _MAPS:
            values.setdefault(part, {})[key] = text
        else:
            values[part] = _value(part, text)
    if not values.get("image"):
        raise ConfigError(
            f"{PREFIX}image is required and not set: name an image with rlpost and a fixed tag, "
            f"{PREFIX}image=REGISTRY/NAME:TAG"
        )
    settings = ClusterConfig(**values)
    for rule in (_image, _names, _amounts, _formats, _environment, _node_labels):
        for problem in rule(settings):
            raise ConfigError(PREFIX + problem)
    return settings


def _value(name: str, text: str) -> str | int | float:
    kind = _KINDS[name]
    if kind is str:
        return text
    what = "a whole number" if kind is int else "a number"
    try:
        value = kind(text)
    except ValueError:
        value = -1
    if not isfinite(value) or value < 0:
        raise ConfigError(f"{PREFIX}{name} must be {what} of 0 or more, got {text}")
    return value


def _image(settings: ClusterConfig) -> Iterator[str]:
    image = settings.image
    path, _, digest = image.partition("@")
    if digest and _DIGEST.fullmatch(digest) and path and not re.search(r"\s", path):
        return
    name, _, tag = path.rpartition("/")[2].partition(":")
    if digest or not name or not _TAG.fullmatch(tag) or re.search(r"\s", image):
        yield f"image must have a fixed tag or a sha256 digest, got {image}: write NAME:TAG"
    elif tag.lower() == "latest":
        yield (
            f"image={image}: latest is another image tomorrow, and a resumed run must find the "
            "same: name a fixed tag or a digest"
        )


def _names(settings: ClusterConfig) -> Iterator[str]:
    optional = ("pull_secret", "queue", "claim", "storage_class")
    for name in ("name", "namespace", "token_secret", "operator_namespace", *optional):
        value, most = getattr(settings, name), MAX_NAME if name == "name" else 63
        if name in optional and not value:
            continue
        if not _DNS.fullmatch(value) or len(value) > most:
            yield (
                f"{name} must be small letters, digits and - within, at most {most} characters, "
                f"got {value!r}: choose another name"
            )


def _amounts(settings: ClusterConfig) -> Iterator[str]:
    for name in ("pod_cpus", "head_cpus", "head_gib", "shm_gib", "user"):
        if getattr(settings, name) < 1:
            why = ": 0 is root, use the image's own user" if name == "user" else ": raise it"
            yield f"{name} must be at least 1, got {getattr(settings, name)}{why}"
    if not settings.gib_per_cpu > 0:
        yield f"gib_per_cpu must be positive, got {settings.gib_per_cpu:g}: raise it"


def _formats(settings: ClusterConfig) -> Iterator[str]:
    if not re.fullmatch(r"(/[-.\w]+)+", settings.mount) or ".." in settings.mount:
        yield f"mount must be an absolute path, got {settings.mount!r}: write /data"
    if not re.fullmatch(r"\d+\.\d+\.\d+", settings.ray_version):
        yield f"ray_version must be that of the image, got {settings.ray_version}: write 2.60.0"
    if not re.fullmatch(r"[-.a-z0-9]+/[-.A-Za-z0-9]+", settings.gpu_resource):
        yield f"gpu_resource must be DOMAIN/NAME, got {settings.gpu_resource}: nvidia.com/gpu"
    for name in ("gpu_tolerations", "cpu_tolerations"):
        for part in listed(getattr(settings, name)):
            if not _TOLERATION.fullmatch(part):
                yield (
                    f"{name} must be KEY[=VALUE]:EFFECT by commas, got {part}: effects are "
                    "NoSchedule, PreferNoSchedule, NoExecute"
                )
    for port in listed(settings.egress_ports):
        if not port.isdecimal() or not 1 <= int(port) <= 65535:
            yield f"egress_ports must be ports by commas, got {port}: write 443"


def _environment(settings: ClusterConfig) -> Iterator[str]:
    for name in (*settings.env, *settings.secret_env):
        if not _VARIABLE.fullmatch(name):
            yield f"env.{name}: a variable is letters, digits and _: rename it"
        if name.startswith("RAY_AUTH"):
            yield f"env.{name}: Ray's token comes from {PREFIX}token_secret: leave it out"
    for name, value in settings.env.items():
        if name in settings.secret_env:
            yield f"env.{name} and {PREFIX}secret_env.{name} are both set: keep one"
        if is_secret_name(name) or redact(value) != value:
            yield (
                f"env.{name} is a secret, and what is rendered is a file: put it into a Secret and "
                f"write {PREFIX}secret_env.{name}=SECRET/KEY"
            )
    for name, value in settings.secret_env.items():
        if not _SECRET.fullmatch(value) or redact(value) != value:
            yield f"secret_env.{name} must name a Secret and its key, SECRET/KEY, and no value"


def _node_labels(settings: ClusterConfig) -> Iterator[str]:
    for name in ("gpu_nodes", "cpu_nodes"):
        for label, value in getattr(settings, name).items():
            if not re.fullmatch(r"[-./\w]+", label) or not _LABEL_VALUE.fullmatch(value):
                yield f"{name}.{label}: {value!r} is no label's value: see kubectl get nodes -L"


def listed(text: str) -> list[str]:
    """Return the parts of a text between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]
