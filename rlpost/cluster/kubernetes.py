"""`cluster=kuberay`: objects as YAML files, sent with kubectl."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml  # omegaconf's own

from rlpost.cluster.jobs import Job
from rlpost.cluster.kuberay import render
from rlpost.cluster.kuberay_settings import KuberayConfig
from rlpost.cluster.overrides import check_overrides, check_plain
from rlpost.cluster.pods import Values
from rlpost.cluster.programs import output_of
from rlpost.cluster.settings import read_settings
from rlpost.cluster.targets import now
from rlpost.schema import RunConfig

FILES = (
    "volume-claim.yaml",
    "network-policy.yaml",
    "disruption-budget.yaml",
    "rollout-disruption-budget.yaml",
    "rayjob.yaml",
    "raycluster.yaml",
)


class _Plain(yaml.SafeDumper):
    """YAML that says everything where it holds, without anchors."""

    def ignore_aliases(self, data: object) -> bool:
        """Say that nothing is written as a reference."""
        del data
        return True


def as_yaml(values: Values) -> str:
    """Return an object as its file holds it."""
    return yaml.dump(values, Dumper=_Plain, sort_keys=False, width=1000)


class Kuberay:
    """A RayJob and what it needs."""

    connects = ("ray.address=auto",)
    file_names = FILES

    def __init__(self, words: Mapping[str, str], name: str) -> None:
        self.cluster = read_settings(KuberayConfig, words, name)

    @property
    def elsewhere(self) -> str:
        """Where the volume is mounted."""
        return self.cluster.mount

    def check(self, overrides: Sequence[str]) -> None:
        """Refuse what the cluster decides, secrets, and what shells would change."""
        check_overrides(overrides, self.cluster)
        check_plain(overrides)

    def render(self, config: RunConfig, overrides: Sequence[str]) -> dict[str, str]:
        """Return the objects' files."""
        objects = render(config, self.cluster, overrides)
        return {name: as_yaml(objects[name]) for name in FILES if name in objects}

    def submit(self, files: Mapping[str, str]) -> Job:
        """Hand the objects to kubectl."""
        output_of(["kubectl", "apply", "-f", "-"], given="---\n".join(files.values()))
        return Job(
            name=self.cluster.name,
            target="kuberay",
            id=f"ray{self.cluster.kind}/{self.cluster.name}",
            where=self.cluster.namespace,
            log="",
            submitted=now(),
        )

    def by_hand(self, paths: Sequence[Path]) -> str:
        """Return the command that sends the objects."""
        return " ".join(["kubectl apply", *(f"-f {path}" for path in paths)])
