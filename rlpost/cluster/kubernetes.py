"""`cluster=kuberay`: objects as YAML files, sent with kubectl."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml  # omegaconf's own

from rlpost.cluster.following import printed
from rlpost.cluster.jobs import Job
from rlpost.cluster.kuberay import render
from rlpost.cluster.kuberay_settings import KuberayConfig
from rlpost.cluster.overrides import check_overrides, check_plain
from rlpost.cluster.pods import PART_LABEL, RUN_LABEL, SUBMITTER, Values
from rlpost.cluster.programs import output_of
from rlpost.cluster.settings import read_settings
from rlpost.cluster.targets import State, now
from rlpost.errors import ResourceError
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

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002  # yaml's own signature
        """Say that nothing is written as a reference."""
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


class KubernetesJobs:
    """RayJobs and RayClusters, by kubectl."""

    def state(self, job: Job) -> State:
        """Return the job's state as KubeRay has it; before KubeRay has seen it there is none."""
        names = ("jobDeploymentStatus", "jobStatus", "state", "message", "reason")
        wanted = "|".join(f"{{.status.{name}}}" for name in names)
        asked = ["kubectl", "get", job.id, "-n", job.where, "-o", f"jsonpath={wanted}"]
        try:
            found = output_of(asked).split("|", len(names) - 1)
        except ResourceError as error:
            if "NotFound" not in str(error):
                raise
            return State(says="not there any more", over=True)
        words = " ".join(filter(None, found[:3])).lower() or "waiting"
        why = next(filter(None, found[3:]), "")
        over = found[0] in ("Complete", "Failed", "ValidationFailed")
        return State(says=f"{words} ({why})" if why else words, over=over)

    def logs(self, job: Job, *, follow: bool) -> Iterator[str]:
        """Yield what the pod prints that has submitted the job, or a RayCluster's head."""
        part = "head" if job.id.startswith("raycluster/") else SUBMITTER
        pods = f"{RUN_LABEL}={job.name},{PART_LABEL}={part}"
        words = ["kubectl", "logs", "-n", job.where, "-l", pods, "--tail=-1"]
        return printed([*words, "--follow"] if follow else words)

    def stop(self, job: Job) -> None:
        """Delete the RayJob or RayCluster, and so all its pods; the volume stays."""
        output_of(["kubectl", "delete", job.id, "-n", job.where, "--wait=false"])
