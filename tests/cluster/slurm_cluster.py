"""A real Slurm on this machine for as long as a test runs: a controller and made-up nodes."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

DAEMONS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch")
READY_S = 60
ENDING_S = 20
# A made-up node has what it is said to have, and jobs run as the user of the test.
_CONFIG = """
ClusterName=rlpost
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=2,batch_sched_delay=0
KillWait=10
MinJobAge=600
ReturnToService=2
GresTypes=gpu
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverTimeLimit=0
"""


def missing() -> str:
    """Return why no Slurm can be started here; empty if one can."""
    absent = [name for name in DAEMONS if _program(name) is None]
    return f"Slurm is not installed: no {', '.join(absent)}" if absent else ""


@contextmanager
def slurm(folder: Path, *, nodes: int, cpus: int, gib: int, gpus: int = 0) -> Generator[None]:
    """Run a Slurm of so many nodes of that size, reached by its own commands, while the block runs.

    The commands find it by `SLURM_CONF`, which is set in this process's environment.
    """
    with ExitStack() as stack:
        _write_config(folder, nodes=nodes, cpus=cpus, gib=gib, gpus=gpus)
        stack.enter_context(_environment("SLURM_CONF", str(folder / "slurm.conf")))
        key = folder / "munge.key"
        subprocess.run([_program("mungekey"), "-c", "-k", str(key)], check=True)
        places = [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "seed")]
        log = f"--log-file={folder}/munge.log"
        munge = [f"--socket={folder}/munge.socket", f"--key-file={key}", log, *places]
        _start(stack, [_program("munged"), "--foreground", "--force", *munge], folder)
        _start(stack, [_program("slurmctld"), "-D", "-c"], folder)
        for number in range(1, nodes + 1):
            _start(stack, [_program("slurmd"), "-D", "-N", f"node{number}"], folder)
        _wait_for_nodes(nodes)
        stack.callback(_end_jobs)
        yield


def slurm_says(*words: str, check: bool = True) -> str:
    """Return what a Slurm command prints."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=READY_S, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout.strip()


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _write_config(folder: Path, *, nodes: int, cpus: int, gib: int, gpus: int) -> None:
    (folder / "state").mkdir()
    host = socket.gethostname().partition(".")[0]
    ports = _free_ports(nodes + 1)
    lines = [
        _CONFIG.format(host=host, port=ports[0], user=getpass.getuser(), folder=folder),
        *(
            f"NodeName=node{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
            f"CPUs={cpus} RealMemory={gib * 1024} State=UNKNOWN"
            + (f" Gres=gpu:{gpus}" * (gpus > 0))
            for number, port in enumerate(ports[1:], 1)
        ),
    ]
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    devices = [folder / f"gpu{number}" for number in range(gpus)]
    for device in devices:
        device.touch()
    (folder / "gres.conf").write_text("".join(f"Name=gpu File={d}\n" for d in devices))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in found]


@contextmanager
def _environment(name: str, value: str) -> Generator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _start(stack: ExitStack, command: list[str], folder: Path) -> None:
    """Start a daemon that ends with the stack."""
    output = stack.enter_context((folder / "daemons.log").open("a"))
    process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    stack.callback(_end, process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(ENDING_S)
    process.kill()
    process.wait()


def _end_jobs() -> None:
    """Cancel what is left, also of a test that failed: jobs outlive the daemons."""
    slurm_says("scancel", f"--user={getpass.getuser()}")
    deadline = time.monotonic() + READY_S
    while left := slurm_says("squeue", "--noheader"):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def _wait_for_nodes(nodes: int) -> None:
    deadline = time.monotonic() + READY_S
    while slurm_says("sinfo", "-h", "-N", "-o", "%t", check=False).split() != ["idle"] * nodes:
        assert time.monotonic() < deadline, slurm_says("sinfo", "-R", "-l", check=False)
        time.sleep(0.2)
