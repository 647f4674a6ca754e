"""Jobs that were submitted to Slurm."""

from collections.abc import Iterator
from pathlib import Path

from rlpost.cluster.following import grown, whole
from rlpost.cluster.jobs import Job
from rlpost.cluster.programs import output_of
from rlpost.cluster.targets import State
from rlpost.errors import ConfigError, ResourceError

_GOING_ON = (
    "PENDING",
    "RUNNING",
    "SUSPENDED",
    "CONFIGURING",
    "COMPLETING",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "RESIZING",
    "SIGNALING",
    "STAGE_OUT",
    "STOPPED",
)


class SlurmQueue:
    """Asks squeue, and sacct of what squeue has forgotten."""

    def state(self, job: Job) -> State:
        """Return the job's state; that of a job that was long ago may be unknown."""
        asked = ["-j", job.id, *_where(job)]
        try:
            said = output_of(["squeue", "--noheader", "-t", "all", "-o", "%T|%r", *asked])
        except ResourceError:
            said = ""
        if not said.strip():
            try:
                said = output_of(["sacct", "--noheader", "-X", "-P", "-o", "State", *asked])
            except (ResourceError, ConfigError):  # without accounting there is nobody to ask
                said = ""
        if not said.strip():
            return State(says="unknown to Slurm by now", over=True)
        word, _, reason = said.strip().splitlines()[-1].partition("|")
        over = word.split()[0] not in _GOING_ON
        why = f" ({reason})" if reason not in ("", "None") and not over else ""
        return State(says=word.lower() + why, over=over)

    def logs(self, job: Job, *, follow: bool) -> Iterator[str]:
        """Yield the driver's lines; the log lies in the shared folder."""
        path = Path(job.log)
        return grown(path, lambda: self.state(job).over) if follow else whole(path)

    def stop(self, job: Job) -> None:
        """Cancel the job, which is not requeued then."""
        output_of(["scancel", *_where(job), job.id])

    def stop_after_step(self, job: Job) -> None:
        """Have the script pass SIGUSR1 on to the driver, and not requeue the job then."""
        state = self.state(job)
        if not state.says.startswith("running"):
            raise ConfigError(
                f"{job.name} is {state.says}, and only a running job has a step to finish: "
                f"rlpost jobs stop {job.name} keeps its earlier checkpoints"
            )
        output_of(["scontrol", *_where(job), "update", f"JobId={job.id}", "Requeue=0"])
        output_of(["scancel", *_where(job), "--signal=USR1", "--batch", job.id])


def _where(job: Job) -> list[str]:
    """Return the option that names a cluster of a federation."""
    return [f"--clusters={job.where}"] if job.where else []
