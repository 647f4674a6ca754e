"""A cluster of three hosts on this machine, started as cluster/README.md says for bare hosts."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hosts import Host, hosts, unavailable

REPOSITORY = Path(__file__).parents[2]
START = [sys.executable, str(REPOSITORY / "cluster" / "bare_hosts.py")]
TOKEN = "0123456789abcdef0123456789abcdef"
SOON = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "15",
}
"""A host that is silent is given up after some 5 x (1 + 2) s, a head that is gone after 15 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Three hosts with Ray, the head first; `hidden` is a folder that the last does not see."""

    hosts: list[Host]
    folder: Path
    hidden: Path
    environment: dict[str, str]

    def program(self, name: str) -> str:
        """Return a program that was installed beside this Python."""
        return str(Path(sys.executable).with_name(name))

    @property
    def address(self) -> str:
        """Where the head listens."""
        return f"{self.hosts[0].address}:6379"

    def manage(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run `bare_hosts.py` on the hosts, by `ip netns exec` in place of ssh."""
        words = ["--hosts", str(self.folder / "hosts.txt"), "--via", str(self.folder / "via")]
        words += ["--folder", f"{self.folder}/{{name}}"]
        for name, value in SOON.items():
            words += ["--env", f"{name}={value}"]
        return subprocess.run(
            [*START, command, *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def rlpost(
        self, command: str, *words: str, host: int = 0, token: str = TOKEN
    ) -> subprocess.Popen[str]:
        """Begin a command of ours on a host."""
        where = f"ray.address={self.address}"
        return subprocess.Popen(
            self.hosts[host].command(self.program("rlpost"), command, *words, where),
            cwd=self.folder,
            env=self.environment | {"RAY_AUTH_TOKEN": token},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """What commands are started with: one thread a process, and the verifier of `recipe`."""
    ours = ("RAY_", "RLPOST_")  # what an earlier test's Ray has set in this process
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    paths = [str(REPOSITORY / "tests" / "integration"), str(REPOSITORY)]
    return kept | {
        "PYTHONPATH": os.pathsep.join([*paths, kept.get("PYTHONPATH", "")]),
        "PYTHONDONTWRITEBYTECODE": "",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="session")
def recipe() -> list[str]:
    """Overrides of the quick start for a run of two learner ranks, as short as one can be."""
    tiny = "{num_layers: 2, hidden_size: 64, intermediate_size: 64, num_heads: 2, num_kv_heads: 1}"
    small = ["steps=3", "prompts_per_step=4", "group_size=4", "warmstart.steps=0", "eval.every=0"]
    ranks = ["learner.num_ranks=2", "learner.num_cpus=0.5", "rollout.num_cpus=0.5"]
    return [
        "recipe=quickstart",
        *small,
        *ranks,
        f"model.scratch={tiny}",
        "task.verifier=letters:share",
    ]


@pytest.fixture(scope="module")
def cluster(environment: dict[str, str]) -> Iterator[Cluster]:
    """Hosts that are gone afterwards, whatever happened on them."""
    if (reason := unavailable()) is not None:
        pytest.skip(f"this machine cannot have hosts as network namespaces: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="rlpost-", dir="/tmp"))  # Ray's sockets need short paths
    try:
        with hosts(3) as found:
            cluster = Cluster(
                hosts=found,
                folder=folder,
                hidden=folder / "hidden",
                environment=environment | SOON | {"RAY_AUTH_TOKEN": TOKEN},
            )
            describe(cluster)
            started = cluster.manage("start")
            assert started.returncode == 0, started.stdout + started.stderr
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def describe(cluster: Cluster) -> None:
    """Write the hosts file, and the command that stands for ssh."""
    labels = ("pool=sample,pair=yes", "pool=train,pair=yes", "pool=train,last=yes")
    lines = [
        f"{host.name} {host.address} --num-cpus 3 --object-store-memory 200000000 --labels {had}\n"
        for host, had in zip(cluster.hosts, labels, strict=True)
    ]
    (cluster.folder / "hosts.txt").write_text("".join(lines))
    cluster.hidden.mkdir()
    last = cluster.hosts[-1]
    mark = last.namespace.removesuffix(last.name)
    # Each `ip netns exec` has mounts of its own.
    via = cluster.folder / "via"
    via.write_text(
        "#!/bin/sh\n"
        "host=$1; shift\n"
        f'[ "$host" = {last.name} ] || exec ip netns exec "{mark}$host" "$@"\n'
        f"exec ip netns exec {last.namespace} sh -c "
        f'\'mount -t tmpfs none {cluster.hidden} && exec "$@"\' - "$@"\n'
    )
    via.chmod(0o755)


@pytest.fixture(scope="session")
def metrics() -> Callable[[Path], list[dict[str, float]]]:
    """Read what a run recorded, without what times and machines put in."""

    def read(run_dir: Path) -> list[dict[str, float]]:
        found = []
        for text in (run_dir / "metrics.jsonl").read_text().splitlines():
            kept = ("policy/", "reward/", "mismatch/", "tokens/", "response/")
            line = {k: v for k, v in json.loads(text).items() if k.startswith(kept)}
            found.append(line)
        return found

    return read
