"""What every target of `rlpost submit` can do."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from rlpost.cluster.jobs import Job
from rlpost.cluster.settings import ClusterConfig
from rlpost.schema import RunConfig


class Target(Protocol):
    """Where a job goes: renders it as files, and sends those.

    `elsewhere` is the folder on other machines in which a job's data may lie, empty if none;
    `connects` are the overrides by which the job finds a Ray that is there already.
    """

    @property
    def cluster(self) -> ClusterConfig:
        """The settings."""
        ...

    @property
    def elsewhere(self) -> str:
        """Such a folder."""
        ...

    @property
    def connects(self) -> Sequence[str]:
        """Such overrides."""
        ...

    @property
    def file_names(self) -> Sequence[str]:
        """All files that it may ever render, in the order in which they are sent."""
        ...

    def check(self, overrides: Sequence[str]) -> None:
        """Refuse overrides that would not reach the job as they are."""
        ...

    def render(self, config: RunConfig, overrides: Sequence[str]) -> dict[str, str]:
        """Return files by name."""
        ...

    def submit(self, files: Mapping[str, str]) -> Job:
        """Send rendered files."""
        ...

    def by_hand(self, paths: Sequence[Path]) -> str:
        """Return the command that sends files which were written."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A job's state in its scheduler's words, and whether it will not go on any more."""

    says: str
    over: bool


class Scheduler(Protocol):
    """Who runs submitted jobs."""

    def state(self, job: Job) -> State:
        """Return the job's state."""
        ...

    def logs(self, job: Job, *, follow: bool) -> Iterator[str]:
        """Yield what the job has printed, and with `follow` what it prints until it ends."""
        ...

    def stop(self, job: Job) -> None:
        """End the job for good."""
        ...

    def stop_after_step(self, job: Job) -> None:
        """End the job for good once its step in hand is over and in a checkpoint.

        Raises:
            ConfigError: its driver cannot be told so from here, or there is none now.
        """
        ...


def now() -> str:
    """Return the time as jobs note it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
