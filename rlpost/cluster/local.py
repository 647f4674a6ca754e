"""`cluster=local`: the job as a process of this machine that outlives the shell."""

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from rlpost.cluster.following import grown, whole
from rlpost.cluster.jobs import Job
from rlpost.cluster.overrides import check_overrides, train
from rlpost.cluster.settings import ClusterConfig, read_settings
from rlpost.cluster.targets import State, now
from rlpost.errors import ConfigError
from rlpost.schema import RunConfig

_FILE = "job.sh"
_CODES = {"0": "succeeded", str(os.EX_TEMPFAIL): "stopped after a checkpoint"}
_SAME_S = 1.0  # a process that began within this is the one, not another with its number


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalConfig(ClusterConfig):
    """Fields that `cluster.*` sets with `cluster=local`."""

    folder: str = "runs"  # has the run directory, the log and the exit code


class Local:
    """A shell script, started in a session of its own."""

    connects = ()
    elsewhere = ""
    file_names = (_FILE,)

    def __init__(self, words: Mapping[str, str], name: str) -> None:
        self.cluster = read_settings(LocalConfig, words, name)
        self._place = Path(self.cluster.folder).absolute() / self.cluster.name

    def check(self, overrides: Sequence[str]) -> None:
        """Refuse what the target decides, and secrets."""
        check_overrides(overrides, self.cluster)

    def render(self, config: RunConfig, overrides: Sequence[str]) -> dict[str, str]:
        """Return the script."""
        del config
        program, *words = train(overrides, str(self._place))
        beside = Path(sys.executable).with_name(program)  # which need not be on the PATH
        command = [str(beside) if beside.is_file() else program, *words]
        lines = [
            "#!/bin/bash",
            "trap : TERM USR1  # both are for the training: its exit code is to be kept",
            *(f"export {k}={shlex.quote(v)}" for k, v in self.cluster.env.items()),
            shlex.join(command),
            f"echo $? > {shlex.quote(f'{self._place}.exit')}",
        ]
        return {_FILE: "\n".join(lines) + "\n"}

    def submit(self, files: Mapping[str, str]) -> Job:
        """Start the script."""
        place = self._place
        place.parent.mkdir(parents=True, exist_ok=True)
        exit_file, log = Path(f"{place}.exit"), Path(f"{place}.log")
        exit_file.unlink(missing_ok=True)
        with log.open("a") as output:
            process = subprocess.Popen(  # noqa: S603 - our own script
                ["/bin/bash", "-c", files[_FILE]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        began = psutil.Process(process.pid).create_time()
        return Job(
            name=self.cluster.name,
            target="local",
            id=f"{process.pid}@{began:.2f}",
            where=socket.gethostname(),
            log=str(log),
            submitted=now(),
        )

    def by_hand(self, paths: Sequence[Path]) -> str:
        """Return the command that runs the script."""
        return f"bash {paths[0]}"


class LocalProcesses:
    """Jobs that were started on this machine."""

    def state(self, job: Job) -> State:
        """Return whether the job runs, or how it ended."""
        if self._process(job) is not None:
            return State(says="running", over=False)
        exit_file = Path(job.log).with_suffix(".exit")
        if not exit_file.is_file():
            return State(says="killed", over=True)
        code = exit_file.read_text(encoding="utf-8").strip()
        return State(says=_CODES.get(code, f"ended with {code}"), over=True)

    def logs(self, job: Job, *, follow: bool) -> Iterator[str]:
        """Yield the job's lines."""
        path = Path(job.log)
        return grown(path, lambda: self.state(job).over, ask_s=1.0) if follow else whole(path)

    def stop(self, job: Job) -> None:
        """Send SIGTERM to the job: it ends its actors and itself."""
        if (process := self._process(job)) is not None:
            os.killpg(process.pid, signal.SIGTERM)

    def stop_after_step(self, job: Job) -> None:
        """Send SIGUSR1 to the driver alone, the only child of the job's script."""
        process = self._process(job)
        drivers = process.children() if process is not None else []
        if not drivers:
            raise ConfigError(f"{job.name} {self.state(job).says}: there is no driver to tell")
        for driver in drivers:
            driver.send_signal(signal.SIGUSR1)

    def _process(self, job: Job) -> psutil.Process | None:
        if job.where != socket.gethostname():
            raise ConfigError(f"{job.name} was started on {job.where}: ask there")
        number, _, began = job.id.partition("@")
        try:
            process = psutil.Process(int(number))
            same = abs(process.create_time() - float(began)) < _SAME_S
            alive = process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if same and alive else None
