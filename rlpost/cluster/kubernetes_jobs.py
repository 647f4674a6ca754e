"""Jobs that were sent to Kubernetes."""

from collections.abc import Iterator

from rlpost.cluster.following import printed
from rlpost.cluster.jobs import Job
from rlpost.cluster.pods import HEAD, HEAD_CONTAINER, PART_LABEL, RUN_LABEL, SUBMITTER
from rlpost.cluster.programs import output_of
from rlpost.cluster.targets import State
from rlpost.errors import ConfigError, ResourceError

# To the process in which Python runs `rlpost train` for the run that $1 names, and to no shell that
# has the same words; every image has bash, and not all have pkill.
_TELL_DRIVER = r"""
told=1
for process in /proc/[0-9]*; do
    words=$(2>/dev/null tr '\0' ' ' <"$process/cmdline") || continue
    if [[ $words =~ ^[^\ ]*python[^\ ]*\ ([^\ ]*/)?rlpost\ train\ .*/$1\  ]]; then
        kill -USR1 "${process#/proc/}" && told=0
    fi
done
[ $told = 0 ] || echo "no rlpost train of $1 runs on the head" >&2
exit $told
"""


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
        part = HEAD if _is_cluster(job) else SUBMITTER
        words = ["kubectl", "logs", "-n", job.where, "-l", _pods(job, part), "--tail=-1"]
        return printed([*words, "--follow"] if follow else words)

    def stop(self, job: Job) -> None:
        """Delete the RayJob or RayCluster, and so all its pods; the volume stays."""
        output_of(["kubectl", "delete", job.id, "-n", job.where, "--wait=false"])

    def stop_after_step(self, job: Job) -> None:
        """Send SIGUSR1 to the driver on the head, after which KubeRay is not to begin anew."""
        if _is_cluster(job):
            raise ConfigError(
                f"{job.name} is a cluster to work in, and its driver is yours: end it there with "
                f"SIGUSR1, and then the cluster with rlpost jobs stop {job.name}"
            )
        asked = ["kubectl", "get", "pods", "-n", job.where, "-l", _pods(job, HEAD), "-o", "name"]
        heads = output_of([*asked, "--field-selector=status.phase=Running"]).split()
        if len(heads) != 1:
            raise ConfigError(
                f"{job.name} is {self.state(job).says} and has {len(heads)} heads that run: there "
                f"is no step to finish; rlpost jobs stop {job.name} keeps its earlier checkpoints"
            )
        within = ["kubectl", "exec", heads[0], "-n", job.where, "-c", HEAD_CONTAINER, "--"]
        output_of([*within, "bash", "-c", _TELL_DRIVER, "bash", job.name])
        # KubeRay looks at it when the driver has ended, and else would begin a new cluster.
        limit = '{"spec":{"backoffLimit":0}}'
        output_of(["kubectl", "patch", job.id, "-n", job.where, "--type=merge", "-p", limit])


def _is_cluster(job: Job) -> bool:
    return job.id.startswith("raycluster/")


def _pods(job: Job, part: str) -> str:
    """Return the selector of a part of a run."""
    return f"{RUN_LABEL}={job.name},{PART_LABEL}={part}"
