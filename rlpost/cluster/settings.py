"""What `cluster.*` says of the machines that a run is meant for, whatever runs them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from math import isfinite
from typing import Any, TypeVar

from rlpost.errors import ConfigError
from rlpost.redaction import is_secret_name, redact
from rlpost.simulation.rates import PREFIX, unknown_field

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MAX_NAME = 47  # of a RayJob: KubeRay adds to it for the names of its pods


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Fields of every target; sizes in GiB, times in seconds; see cluster/README.md."""

    name: str  # of the job, and of the run directory
    env: Mapping[str, str] = field(default_factory=dict)  # cluster.env.NAME=VALUE

    def problems(self) -> Iterator[str]:
        """Yield what cannot be, one sentence each, beginning with the field's name."""
        if not _NAME.fullmatch(self.name) or len(self.name) > MAX_NAME:
            yield (
                f"name must be small letters, digits and - within, at most {MAX_NAME} characters, "
                f"got {self.name!r}: choose another name"
            )
        for name, value in self.env.items():
            if name.startswith("RAY_AUTH"):
                yield f"env.{name}: Ray's token is the target's own matter: leave it out"
            if not _VARIABLE.fullmatch(name):
                yield f"env.{name}: a variable is letters, digits and _: rename it"
            if is_secret_name(name) or redact(value) != value:
                yield (
                    f"env.{name} is a secret, and what is rendered is a file: {self.secret_remedy}"
                )

    @property
    def secret_remedy(self) -> str:
        """How a secret reaches the job instead."""
        return "have it in the environment that the job starts in"


@dataclass(frozen=True, slots=True, kw_only=True)
class SizedConfig(ClusterConfig):
    """Fields of the targets whose machines, or pods, are sized from the recipe."""

    node_cpus: int = 64  # the most that a node can give, or a pod may ask for
    node_gpus: int = 8
    gib_per_cpu: float = 8.0  # of an actor's CPUs and GPUs, beside /dev/shm
    gib_per_gpu: float = 32.0
    shm_gib: int = 8  # of each node: half for Ray's object store
    head_cpus: int = 4
    head_gib: int = 16

    def problems(self) -> Iterator[str]:
        """Yield what cannot be."""
        yield from ClusterConfig.problems(self)
        for name in ("node_cpus", "head_cpus", "head_gib", "shm_gib"):
            if getattr(self, name) < 1:
                yield f"{name} must be at least 1, got {getattr(self, name)}: raise it"
        if not self.gib_per_cpu > 0:
            yield f"gib_per_cpu must be positive, got {self.gib_per_cpu:g}: raise it"

    @property
    def object_store_bytes(self) -> int:
        """What Ray's object store takes of a node's shared memory."""
        return self.shm_gib * 2**29


Config = TypeVar("Config", bound=ClusterConfig)


def read_settings(kind: type[Config], words: Mapping[str, str], name: str) -> Config:
    """Return the settings that words without their `cluster.` say; `name` where they say none.

    Raises:
        ConfigError: an unknown field, a value that the target or a rule of ours does not take.
    """
    kinds: dict[str, Any] = {part.name: part.type for part in fields(kind)}
    maps = [part for part, of in kinds.items() if of not in (str, int, float)]
    values: dict[str, Any] = {"name": name}
    for word, text in words.items():
        part, dot, key = word.partition(".")
        if part not in kinds or (part in maps) != bool(dot and key):
            known = [f"{known}.NAME" if known in maps else known for known in kinds]
            raise unknown_field(word, known)
        if part in maps:
            values.setdefault(part, {})[key] = text
        else:
            values[part] = _value(part, text, kinds[part])
    settings = kind(**values)
    for problem in settings.problems():
        raise ConfigError(PREFIX + problem)
    return settings


def _value(name: str, text: str, kind: type) -> str | int | float:
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


def listed(text: str) -> list[str]:
    """Return the parts of a text between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]
