"""All targets of `rlpost submit`, and who runs what was sent to them."""

from collections.abc import Callable, Mapping
from functools import partial

from rlpost.cluster.kubernetes import Kuberay
from rlpost.cluster.kubernetes_jobs import KubernetesJobs
from rlpost.cluster.local import Local, LocalProcesses
from rlpost.cluster.ray_jobs import Connect, RayCluster, RayQueue
from rlpost.cluster.slurm import Slurm
from rlpost.cluster.slurm_queue import SlurmQueue
from rlpost.cluster.targets import Scheduler, Target

NAMES = ("kuberay", "slurm", "ray", "local")


def target(kind: str, connect: Connect) -> Callable[[Mapping[str, str], str], Target]:
    """Return what makes a target from `cluster.*` without its prefix, and a job's name."""
    table: dict[str, Callable[[Mapping[str, str], str], Target]] = {
        "kuberay": Kuberay,
        "slurm": Slurm,
        "ray": partial(RayCluster, connect),
        "local": Local,
    }
    return table[kind]


def scheduler(kind: str, connect: Connect) -> Scheduler:
    """Return who runs a target's jobs."""
    table: dict[str, Scheduler] = {
        "kuberay": KubernetesJobs(),
        "slurm": SlurmQueue(),
        "ray": RayQueue(connect),
        "local": LocalProcesses(),
    }
    return table[kind]
