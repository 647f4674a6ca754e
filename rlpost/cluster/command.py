"""`rlpost submit`: renders the objects of a run into a folder; it sends nothing to a cluster."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml  # omegaconf's own

from rlpost.atomic import write_text
from rlpost.cluster.kuberay import check_overrides, render
from rlpost.cluster.pods import Values
from rlpost.cluster.settings import MAX_NAME, read_settings
from rlpost.config import load, recipe_name
from rlpost.errors import ConfigError
from rlpost.schema import RunConfig
from rlpost.simulation.rates import PREFIX

FILES = ("volume-claim.yaml", "network-policy.yaml", "disruption-budget.yaml", "rayjob.yaml")
_USAGE = (
    "rlpost submit [field=value ...] cluster=kuberay cluster.image=NAME:TAG out=FOLDER "
    "[cluster.FIELD=value ...]"
)


class _Plain(yaml.SafeDumper):
    """YAML that says everything where it holds, without anchors."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002  # yaml's own signature
        """Say that nothing is written as a reference."""
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """The words of a command by what they are for."""

    overrides: tuple[str, ...]
    cluster: dict[str, str]
    out: Path


def read_words(words: Sequence[str]) -> Command:
    """Sort the words of a command.

    Raises:
        ConfigError: an option that there is not, or one that is missing.
    """
    overrides, cluster, kind, out = [], {}, "", ""
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("-") or not equals:
            raise ConfigError(f"rlpost submit: {word}: expected {_USAGE}")
        if name == "out":
            out = value
        elif name == "cluster":
            kind = value
        elif name.startswith(PREFIX):
            cluster[name.removeprefix(PREFIX)] = value
        else:
            overrides.append(word)
    if kind != "kuberay":
        raise ConfigError(f"cluster={kind or '(not set)'}: available: kuberay; {_USAGE}")
    if not out:
        raise ConfigError(f"out is required and not set: the folder to write to; {_USAGE}")
    return Command(overrides=tuple(overrides), cluster=cluster, out=Path(out))


def main(words: Sequence[str]) -> int:
    """Write a run's objects into a folder and say what to do with them; return the exit code."""
    command = read_words(words)
    check_overrides(command.overrides)
    cluster = read_settings(command.cluster, "not-named-yet")
    # The actors need no room on this machine.
    seen_here = [_seen_here(word, cluster.mount) for word in command.overrides]
    config = load(None, [*seen_here, "ray.address=auto", "resume=auto"])
    if "name" not in command.cluster:
        cluster = replace(cluster, name=default_name(config))
    objects = render(config, cluster, command.overrides)
    command.out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        path = command.out / name
        if name in objects:
            write_text(path, as_yaml(objects[name]))
        else:
            path.unlink(missing_ok=True)  # of a rendering before this one
    written = [name for name in FILES if name in objects]
    lines = [f"{command.out / name}" for name in written]
    if cluster.backoff_limit and not config.checkpoint.every:
        lines.append(
            f"warning: {PREFIX}backoff_limit={cluster.backoff_limit} starts anew after a failure: "
            "checkpoint.every=0 leaves nothing to resume from"
        )
    files = " ".join(f"-f {command.out / name}" for name in written)
    lines.append(f"Nothing was submitted. To do so: kubectl apply {files}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def as_yaml(values: Values) -> str:
    """Return an object as its file holds it."""
    return yaml.dump(values, Dumper=_Plain, sort_keys=False, width=1000)


def _seen_here(word: str, mount: str) -> str:
    """Return an override as this machine can check it: what lies on the volume is not here."""
    name, _, value = word.partition("=")
    on_volume = name in ("data.path", "model.path") and value.startswith(f"{mount}/")
    return f"{name}=on/volume" if on_volume else word


def default_name(config: RunConfig) -> str:
    """Return a name that Kubernetes takes, of the recipe, the objective and the seed."""
    text = f"{recipe_name()}-{config.objective.name}-seed{config.seed}".lower()
    return re.sub(r"[^a-z0-9]+", "-", text)[:MAX_NAME].strip("-")
