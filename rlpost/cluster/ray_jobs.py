"""`cluster=ray`: a job of a Ray cluster that is there already."""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from rlpost.cluster.jobs import Job
from rlpost.cluster.overrides import check_overrides, check_plain, train
from rlpost.cluster.settings import ClusterConfig, read_settings
from rlpost.cluster.targets import State, now
from rlpost.errors import ConfigError
from rlpost.schema import RunConfig

_FILE = "job.json"
_ADDRESS = re.compile(r"https?://[\w.:\[\]-]+")


class Client(Protocol):
    """What rlpost asks of Ray's job server."""

    def submit(self, request: Mapping[str, Any]) -> None:
        """Send a job."""
        ...

    def state(self, job_id: str) -> State:
        """Return a job's state."""
        ...

    def logs(self, job_id: str, *, follow: bool) -> Iterator[str]:
        """Yield what a job prints."""
        ...

    def stop(self, job_id: str) -> None:
        """End a job."""
        ...


Connect = Callable[[str], Client]
"""Connects to the job server of an address; the actors' side has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RayJobConfig(ClusterConfig):
    """Fields that `cluster.*` sets with `cluster=ray`."""

    address: str = ""  # required: of the cluster's dashboard, http://HOST:8265
    folder: str = ""  # required: seen by all nodes; has the run directory

    def problems(self) -> Iterator[str]:
        """Yield what cannot be."""
        yield from ClusterConfig.problems(self)
        if not _ADDRESS.fullmatch(self.address):
            yield (
                f"address must be that of the cluster's dashboard, http://HOST:8265, got "
                f"{self.address or '(not set)'}"
            )
        if not re.fullmatch(r"(/[-.\w]+)+", self.folder) or ".." in self.folder:
            yield (
                f"folder must be the absolute path of a folder that all nodes see, got "
                f"{self.folder or '(not set)'}: the run directory lies in it"
            )


class RayCluster:
    """A request to the cluster's job server; the driver runs on the head."""

    connects = ("ray.address=auto",)
    file_names = (_FILE,)

    def __init__(self, connect: Connect, words: Mapping[str, str], name: str) -> None:
        self.connect = connect
        self.cluster = read_settings(RayJobConfig, words, name)

    @property
    def elsewhere(self) -> str:
        """The shared folder, where this machine does not see it."""
        return "" if Path(self.cluster.folder).is_dir() else self.cluster.folder

    def check(self, overrides: Sequence[str]) -> None:
        """Refuse what the cluster decides, secrets, and what a shell would change."""
        check_overrides(overrides, self.cluster)
        check_plain(overrides)

    def render(self, config: RunConfig, overrides: Sequence[str]) -> dict[str, str]:
        """Return the request; each has an id of its own, since Ray takes none twice."""
        del config
        cluster = self.cluster
        command = [*train(overrides, f"{cluster.folder}/{cluster.name}"), "ray.address=auto"]
        request = {
            "submission_id": f"{cluster.name}-{uuid4().hex[:8]}",
            "entrypoint": shlex.join(command),
            "runtime_env": {"env_vars": dict(cluster.env)},
            "metadata": {"rlpost_run": cluster.name},
        }
        return {_FILE: json.dumps(request, indent=2) + "\n"}

    def submit(self, files: Mapping[str, str]) -> Job:
        """Send the request."""
        request = json.loads(files[_FILE])
        self.connect(self.cluster.address).submit(request)
        return Job(
            name=self.cluster.name,
            target="ray",
            id=request["submission_id"],
            where=self.cluster.address,
            log="",
            submitted=now(),
        )

    def by_hand(self, paths: Sequence[Path]) -> str:
        """Return the command that sends the request."""
        token = '-H "Authorization: Bearer $RAY_AUTH_TOKEN"'
        return f"curl {token} -d @{paths[0]} {self.cluster.address}/api/jobs/"


class RayQueue:
    """Jobs that were sent to a Ray cluster."""

    def __init__(self, connect: Connect) -> None:
        self.connect = connect

    def state(self, job: Job) -> State:
        """Return the job's state."""
        return self.connect(job.where).state(job.id)

    def logs(self, job: Job, *, follow: bool) -> Iterator[str]:
        """Yield what the job prints."""
        return self.connect(job.where).logs(job.id, follow=follow)

    def stop(self, job: Job) -> None:
        """End the job."""
        self.connect(job.where).stop(job.id)

    def stop_after_step(self, job: Job) -> None:
        """Refuse: Ray's job server passes no such signal on."""
        raise ConfigError(
            f"{job.name}: Ray's job server can only end a job at once. On the cluster's head, "
            f"pkill -USR1 -nf '[r]lpost train .*/{job.name} ' has the driver end after a "
            f"checkpoint; rlpost jobs stop {job.name} keeps those that were written before"
        )
