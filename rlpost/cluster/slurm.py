"""The batch script of a run: what it asks Slurm for, its settings, and then the same for all."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from rlpost.cluster.allocation import Allocation, allocation
from rlpost.cluster.jobs import Job
from rlpost.cluster.overrides import check_overrides, train
from rlpost.cluster.programs import output_of
from rlpost.cluster.settings import read_settings
from rlpost.cluster.slurm_settings import SlurmConfig
from rlpost.cluster.targets import now
from rlpost.errors import ConfigError
from rlpost.schema import RunConfig

_BODY = "slurm_job.sh"
_FILE = "job.sbatch"


class Slurm:
    """`cluster=slurm`: one batch script, sent with sbatch."""

    connects = ("ray.address=auto",)
    file_names = (_FILE,)

    def __init__(self, words: Mapping[str, str], name: str) -> None:
        self.cluster = read_settings(SlurmConfig, words, name)

    @property
    def elsewhere(self) -> str:
        """The shared folder, where this machine does not see it."""
        return "" if Path(self.cluster.folder).is_dir() else self.cluster.folder

    def check(self, overrides: Sequence[str]) -> None:
        """Refuse what the script decides, and secrets."""
        check_overrides(overrides, self.cluster)

    def render(self, config: RunConfig, overrides: Sequence[str]) -> dict[str, str]:
        """Return the script."""
        return {_FILE: render(config, self.cluster, overrides)}

    def submit(self, files: Mapping[str, str]) -> Job:
        """Hand the script to sbatch."""
        cluster = self.cluster
        if self.elsewhere:
            raise ConfigError(
                f"cluster.folder={cluster.folder} is not there: make it, on a disk that all nodes "
                "see, or write the script with out=FOLDER and submit it where it is"
            )
        printed = output_of(["sbatch", "--parsable"], given=files[_FILE])
        number, _, federated = printed.strip().partition(";")
        log = f"{cluster.folder}/{cluster.name}.log"
        return Job(
            name=cluster.name, target="slurm", id=number, where=federated, log=log, submitted=now()
        )

    def by_hand(self, paths: Sequence[Path]) -> str:
        """Return the command that sends the script."""
        return f"mkdir -p {self.cluster.folder} && sbatch {paths[0]}"


def render(config: RunConfig, cluster: SlurmConfig, overrides: Sequence[str]) -> str:
    """Return the script.

    Raises:
        ConfigError: an actor is larger than a node.
    """
    asked = allocation(config, cluster)
    body = files("rlpost.cluster").joinpath(_BODY).read_text(encoding="utf-8")
    options = "\n".join(f"#SBATCH --{name}={value}" for name, value in _options(cluster, asked))
    flags = "#SBATCH --requeue\n#SBATCH --open-mode=append"
    return "\n".join(
        [
            "#!/bin/bash",
            options,
            flags,
            "",
            *_environment(cluster),
            *_settings(cluster, asked, overrides),
            "",
            body,
        ]
    )


def _options(cluster: SlurmConfig, asked: Allocation) -> Iterator[tuple[str, str]]:
    yield "job-name", cluster.name
    for name in ("partition", "account", "qos", "constraint", "reservation"):
        if value := getattr(cluster, name):
            yield name, value
    yield "nodes", f"{asked.nodes}"
    yield "ntasks-per-node", "1"
    yield "cpus-per-task", f"{asked.num_cpus}"
    yield "mem", f"{asked.memory_gib}G"
    if asked.num_gpus:
        yield "gres", f"{cluster.gres}:{asked.num_gpus}"
    yield "time", _time(cluster.limit_s)
    yield "signal", f"B:USR1@{cluster.warn_s}"
    yield "output", f"{cluster.folder}/{cluster.name}.log"


def _time(seconds: int) -> str:
    """Return a time as Slurm writes it; it rounds up to minutes."""
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}-{hour:02}:{minute:02}:{second:02}"


def _environment(cluster: SlurmConfig) -> Iterator[str]:
    for name, value in cluster.env.items():
        yield f"export {name}={shlex.quote(value)}"


def _settings(cluster: SlurmConfig, asked: Allocation, overrides: Sequence[str]) -> Iterator[str]:
    values = {
        "run_dir": cluster.run_dir,
        "setup": cluster.setup,
        "interface": cluster.interface,
        "ray_cpus": asked.ray_cpus,
        "ray_gpus": asked.num_gpus,
        "object_store_bytes": cluster.object_store_bytes,
        "ready_s": cluster.ready_s,
    }
    for name, value in values.items():
        yield f"export {name}={shlex.quote(str(value))}"
    yield f"train=({shlex.join(train(overrides, cluster.run_dir))})"
