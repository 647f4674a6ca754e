"""What was submitted, remembered in the user's own state folder."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from rlpost.atomic import write_text
from rlpost.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A submission: where it went, and by what its scheduler knows it.

    `where` is the target's own: a namespace, an address, a host. `log` is a file that a machine
    with the job's folder can read; empty where the scheduler keeps the log.
    """

    name: str
    target: str
    id: str
    where: str
    log: str
    submitted: str  # the time, in UTC


def remember(job: Job) -> None:
    """Keep a submission; one of the same name before it is forgotten."""
    path = _path(job.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(asdict(job), indent=1) + "\n")


def remembered() -> list[Job]:
    """Return all submissions, the oldest first."""
    jobs = [_read(path) for path in _folder().glob("*.json")]
    return sorted(jobs, key=lambda job: job.submitted)


def forget(job: Job) -> None:
    """Remember a submission no more."""
    _path(job.name).unlink(missing_ok=True)


def find(name: str) -> Job:
    """Return a submission.

    Raises:
        ConfigError: there is none of that name.
    """
    path = _path(name)
    if not path.is_file():
        known = ", ".join(job.name for job in remembered()) or "none"
        raise ConfigError(
            f"{name}: nothing of this name was submitted from here; there are {known}"
        )
    return _read(path)


def _read(path: Path) -> Job:
    try:
        return Job(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is damaged: {error}: remove it") from error


def _path(name: str) -> Path:
    return _folder() / f"{name}.json"


def _folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "rlpost" / "jobs"
