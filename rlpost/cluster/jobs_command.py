"""`rlpost jobs`: what was submitted from here, and what has become of it."""

import sys
from collections.abc import Sequence

from rlpost.cluster.jobs import Job, find, forget, remembered
from rlpost.cluster.ray_jobs import Connect
from rlpost.cluster.registry import scheduler
from rlpost.errors import ConfigError, RlpostError
from rlpost.usage import usage


def main(words: Sequence[str], connect: Connect) -> int:
    """Run one of the verbs; return the exit code."""
    match list(words):
        case [] | ["list"]:
            sys.stdout.write(_table(remembered(), connect))
        case ["status", name]:
            sys.stdout.write(_status(find(name), connect))
        case ["logs", name, *options] if set(options) <= {"follow=true", "follow=false"}:
            job = find(name)
            follow = "follow=false" not in options
            for text in scheduler(job.target, connect).logs(job, follow=follow):
                sys.stdout.write(text)
                sys.stdout.flush()
        case ["stop", name]:
            job = find(name)
            scheduler(job.target, connect).stop(job)
            sys.stdout.write(f"{job.target} was told to stop {job.id}\n")
        case ["stop", name, "checkpoint=true"]:
            job = find(name)
            scheduler(job.target, connect).stop_after_step(job)
            sys.stdout.write(
                f"{job.target} was told to stop {job.id} after this step and a checkpoint: "
                f"rlpost jobs status {job.name}\n"
            )
        case ["forget", name]:
            forget(find(name))
        case _:
            raise ConfigError(f"rlpost jobs {' '.join(words)}: expected {usage('jobs')}")
    return 0


def _table(jobs: Sequence[Job], connect: Connect) -> str:
    if not jobs:
        return "nothing was submitted from here\n"
    rows = [("NAME", "TARGET", "ID", "SUBMITTED", "STATE")]
    for job in jobs:
        try:
            state = scheduler(job.target, connect).state(job).says
        except RlpostError as error:  # one that cannot be asked does not hide the others
            state = f"not known: {error}"
        rows.append((job.name, job.target, job.id, job.submitted, state))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "".join(
        "  ".join([*(row[i].ljust(widths[i]) for i in range(4)), row[4]]) + "\n" for row in rows
    )


def _status(job: Job, connect: Connect) -> str:
    lines = {
        "name": job.name,
        "target": f"{job.target} {job.where}".strip(),
        "id": job.id,
        "submitted": job.submitted,
        "log": job.log or "the scheduler keeps it",
        "state": scheduler(job.target, connect).state(job).says,
    }
    return "".join(f"{name + ':':<11}{value}\n" for name, value in lines.items())
