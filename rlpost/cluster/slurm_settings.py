"""What `cluster.*` says of a cluster that Slurm runs."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from rlpost.cluster.settings import SizedConfig

_WORD = re.compile(r"[\w.@%+=:,|&*!\[\]-]+", re.ASCII)
_PATH = re.compile(r"(/[-.\w]+)+", re.ASCII)
_MOST_WARNING_S = 65535  # Slurm's own


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmConfig(SizedConfig):
    """Fields that `cluster.*` sets with `cluster=slurm`; see cluster/slurm.md."""

    folder: str = ""  # required: seen by all nodes; the run directory and the logs lie in it
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""  # node features
    reservation: str = ""
    gres: str = "gpu"  # a node's GPUs as Slurm calls them, gpu or gpu:TYPE
    limit_s: int = 86400  # of one allocation; Slurm counts in minutes
    warn_s: int = 900  # so long before the limit a checkpoint is asked for
    ready_s: int = 300  # for Ray to start on all nodes
    setup: str = ""  # a file that each node's shell reads first: modules, a virtual environment
    interface: str = ""  # of the network between nodes; empty: that of their names

    def problems(self) -> Iterator[str]:
        """Yield what cannot be."""
        yield from SizedConfig.problems(self)
        if not _PATH.fullmatch(self.folder) or ".." in self.folder:
            yield (
                f"folder must be the absolute path of a folder that all nodes see, got "
                f"{self.folder or '(not set)'}: the run directory and the logs lie in it"
            )
        if self.setup and not _PATH.fullmatch(self.setup):
            yield f"setup must be the absolute path of a file, got {self.setup}"
        for name in ("partition", "account", "qos", "constraint", "reservation", "gres"):
            value = getattr(self, name)
            if value and not _WORD.fullmatch(value):
                yield f"{name} must be a word as sbatch takes it, got {value!r}"
        if self.interface and not re.fullmatch(r"[\w.-]{1,15}", self.interface):
            yield f"interface must be one as `ip address` lists it, got {self.interface!r}"
        if not 1 <= self.warn_s <= min(_MOST_WARNING_S, self.limit_s // 2):
            yield (
                f"warn_s={self.warn_s} must be at least 1 and at most half of limit_s="
                f"{self.limit_s}: a step and a checkpoint must fit into it, and a start before it"
            )
        if self.ready_s < 1:
            yield f"ready_s must be at least 1, got {self.ready_s}: raise it"

    @property
    def run_dir(self) -> str:
        """Where the run lies."""
        return f"{self.folder}/{self.name}"
