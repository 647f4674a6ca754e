"""What `cluster.*` says of a Kubernetes cluster."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from rlpost.cluster.settings import SizedConfig, listed
from rlpost.redaction import redact
from rlpost.simulation.rates import PREFIX

_DNS = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SECRET = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[-._A-Za-z0-9]+")
_TOLERATION = re.compile(r"[^\s:=]+(=[^\s:=]*)?:(NoSchedule|PreferNoSchedule|NoExecute)")
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?")
_TAG = re.compile(r"[\w][\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KuberayConfig(SizedConfig):
    """Fields that `cluster.*` sets with `cluster=kuberay`; see cluster/kubernetes.md."""

    image: str = ""  # required: with a fixed tag, or a digest
    kind: str = "job"  # RayJob; cluster: a RayCluster to work in
    namespace: str = "default"
    ray_version: str = "2.60.0"  # the image's
    pull_secret: str = ""
    user: int = 1000  # the image's, not root; also the group that owns the volume
    token_secret: str = "rlpost-ray-token"  # a Secret with the key auth_token
    operator_namespace: str = "kuberay-system"
    scheduler: str = "kueue"  # who starts pods all together, where there is a queue; or volcano
    queue: str = ""  # Kueue's LocalQueue, or Volcano's queue
    rollout_per_pod: int = 0  # engines in a pod; 0: as many as fit
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
    secret_env: Mapping[str, str] = field(default_factory=dict)  # NAME=SECRET/KEY
    gpu_nodes: Mapping[str, str] = field(default_factory=dict)  # node labels of pods with GPUs
    cpu_nodes: Mapping[str, str] = field(default_factory=dict)  # and of those without

    def problems(self) -> Iterator[str]:
        """Yield what cannot be."""
        rules = (_image, _choices, _names, _formats, _environment, _node_labels)
        for rule in (SizedConfig.problems, *rules):
            yield from rule(self)

    @property
    def secret_remedy(self) -> str:
        """How a secret reaches the job instead."""
        return f"put it into a Secret and write {PREFIX}secret_env.NAME=SECRET/KEY"


def _image(settings: KuberayConfig) -> Iterator[str]:
    image = settings.image
    path, _, digest = image.partition("@")
    if not image:
        yield (
            "image is required and not set: name an image with rlpost and a fixed tag, "
            f"{PREFIX}image=REGISTRY/NAME:TAG"
        )
        return
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


def _names(settings: KuberayConfig) -> Iterator[str]:
    optional = ("pull_secret", "queue", "claim", "storage_class")
    for name in ("namespace", "token_secret", "operator_namespace", *optional):
        value = getattr(settings, name)
        if name in optional and not value:
            continue
        if not _DNS.fullmatch(value) or len(value) > 63:
            yield (
                f"{name} must be small letters, digits and - within, at most 63 characters, "
                f"got {value!r}: choose another name"
            )


def _choices(settings: KuberayConfig) -> Iterator[str]:
    for name, known in (("kind", ("job", "cluster")), ("scheduler", ("kueue", "volcano"))):
        if getattr(settings, name) not in known:
            yield f"{name} must be {known[0]} or {known[1]}, got {getattr(settings, name)}"


def _formats(settings: KuberayConfig) -> Iterator[str]:
    if settings.user < 1:
        yield f"user must be at least 1, got {settings.user}: 0 is root, use the image's own user"
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


def _environment(settings: KuberayConfig) -> Iterator[str]:
    for name, value in settings.secret_env.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            yield f"secret_env.{name}: a variable is letters, digits and _: rename it"
        if name.startswith("RAY_AUTH"):
            yield f"secret_env.{name}: Ray's token comes from {PREFIX}token_secret: leave it out"
        if name in settings.env:
            yield f"env.{name} and {PREFIX}secret_env.{name} are both set: keep one"
        if not _SECRET.fullmatch(value) or redact(value) != value:
            yield f"secret_env.{name} must name a Secret and its key, SECRET/KEY, and no value"


def _node_labels(settings: KuberayConfig) -> Iterator[str]:
    for name in ("gpu_nodes", "cpu_nodes"):
        for label, value in getattr(settings, name).items():
            if not re.fullmatch(r"[-./\w]+", label) or not _LABEL_VALUE.fullmatch(value):
                yield f"{name}.{label}: {value!r} is no label's value: see kubectl get nodes -L"
