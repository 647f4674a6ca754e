"""What differs between the recipe that a checkpoint was made with and the one that continues it."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from rlpost.errors import ConfigError

# Neither what is learned nor in which order depends on these.
_FREE = (
    "run_dir",
    "resume",
    "resume_allow_changes",
    "checkpoint.",
    "tracking.",
    "ray.",
    "guards.",
    "supervision.",
    "watchdog.",
    "eval.",
    "weights.",
    "layout",
    "learner.node_labels",
    "rollout.node_labels",
    "reference.node_labels",
    "reward.node_labels",
)
_FREE_ENDINGS = (
    "timeout_s",
    "num_cpus",
    "num_threads",
    "placement",
    "kv_cache_gib",
    "gpu_memory_utilization",
)
# The saved state has another shape.
_FIXED = (
    "model.",
    "learner.num_ranks",
    "learner.zero_stage",
    "learner.offload_",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A field with its value in the checkpoint's recipe and in the new one."""

    field: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.before} -> {self.now}"


def changes(before: str, now: str) -> list[Change]:
    """Return the fields in which two resolved recipes, as YAML, differ."""
    old, new = (dict(_flat(OmegaConf.to_container(OmegaConf.create(y)), "")) for y in (before, now))
    return [
        Change(field=name, before=old.get(name, "(absent)"), now=new.get(name, "(absent)"))
        for name in sorted(old.keys() | new.keys())
        if old.get(name, "(absent)") != new.get(name, "(absent)")
    ]


def refuse(found: Collection[Change], allowed: Collection[str], *, scheduled: bool) -> None:
    """Refuse changes after which a run is not the one that it continues.

    Args:
        found: all changes.
        allowed: fields that may change, or `all`.
        scheduled: whether the number of steps shapes a schedule.

    Raises:
        ConfigError: a change is not allowed; the message lists them.
    """
    impossible = [change for change in found if change.field.startswith(_FIXED)]
    if impossible:
        raise ConfigError(
            f"the checkpoint was made with another {_listed(impossible)}, and its state does not "
            "fit: keep the value, or begin a new run from the checkpoint's folder export with "
            "model.path"
        )
    refused = [
        change
        for change in found
        if not is_free(change.field, scheduled=scheduled)
        and change.field not in allowed
        and "all" not in allowed
    ]
    if refused:
        names = ",".join(change.field for change in refused)
        raise ConfigError(
            f"the recipe is not the one that the checkpoint was made with: {_listed(refused)}. The "
            "run would not be what it would have been: keep the values, or accept that with "
            f"resume_allow_changes=[{names}]"
        )


def is_free(field: str, *, scheduled: bool) -> bool:
    """Return whether a change of a field leaves a run exact."""
    if field == "steps":
        return not scheduled
    return field.startswith(_FREE) or field.endswith(_FREE_ENDINGS)


def _listed(found: Collection[Change]) -> str:
    return "; ".join(map(str, found))


def _flat(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node
