"""Hosts on one machine: network namespaces, joined by a bridge in a namespace of its own.

Nothing of it lies in the machine's own network, so whatever happens it goes with the namespaces.
"""

import contextlib
import os
import subprocess
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import psutil

_ENDING_S = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A namespace with one link to the others, up unless it is cut."""

    name: str
    namespace: str
    address: str
    switch: str

    def command(self, *words: str) -> list[str]:
        """Return the command that runs words on this host."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def processes(self) -> list[psutil.Process]:
        """Return what runs on this host."""
        found = []
        for word in ip("netns", "pids", self.namespace).split():
            with contextlib.suppress(psutil.Error):
                found.append(psutil.Process(int(word)))
        return found

    def commands(self) -> dict[psutil.Process, str]:
        """Return what runs on this host, with the names that the processes give themselves."""
        found = {}
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                found[process] = " ".join(process.cmdline())
        return found

    def cut(self) -> None:
        """Take the link down at the switch: to the host the network is there, and silent."""
        ip("-n", self.switch, "link", "set", self.name, "down")

    def mend(self) -> None:
        """Take the link up again."""
        ip("-n", self.switch, "link", "set", self.name, "up")

    def kill(self) -> None:
        """Kill every process of this host at once, as when its power fails."""
        while found := self.processes():
            for process in found:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(found, timeout=_ENDING_S)


@contextmanager
def parted(*hosts: Host) -> Generator[None]:
    """Keep these hosts from each other in the block; all others reach them as before."""
    _isolate(hosts, "on")
    yield
    _isolate(hosts, "off")


def _isolate(hosts: Sequence[Host], how: str) -> None:
    for host in hosts:
        port = ["link", "set", "dev", host.name, "type", "bridge_slave", "isolated", how]
        ip("-n", host.switch, *port)


def ip(*words: str) -> str:
    """Run iproute2 and return what it prints."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def unavailable() -> str | None:
    """Return why this machine cannot have such hosts, None where it can."""
    try:
        with hosts(1) as (host,):
            subprocess.run(host.command("true"), capture_output=True, check=True)
            return None
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        return str(error)


@contextmanager
def namespace(name: str) -> Generator[str]:
    """Add a network namespace and delete it at last."""
    ip("netns", "add", name)
    try:
        ip("-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        ip("netns", "delete", name)


@contextmanager
def hosts(count: int) -> Generator[list[Host]]:
    """Make hosts 10.77.0.1, 10.77.0.2, ... and end all that runs on them with the block."""
    mark = f"rlpost-{os.getpid()}"
    with ExitStack() as stack:
        switch = stack.enter_context(namespace(f"{mark}-switch"))
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        found = []
        for number in range(1, count + 1):
            name = f"host-{number}"
            host = Host(
                name=name,
                namespace=stack.enter_context(namespace(f"{mark}-{name}")),
                address=f"10.77.0.{number}",
                switch=switch,
            )
            _connect(host)
            stack.callback(host.kill)
            found.append(host)
        yield found


def _connect(host: Host) -> None:
    inside = ["peer", "name", "eth0", "netns", host.namespace]
    ip("-n", host.switch, "link", "add", host.name, "type", "veth", *inside)
    ip("-n", host.switch, "link", "set", host.name, "master", "bridge", "up")
    ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
    ip("-n", host.namespace, "link", "set", "eth0", "up")
