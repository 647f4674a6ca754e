"""The head of a Ray cluster, started as its owner would."""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

RAY = Path(sys.executable).with_name("ray")
TOKEN = "0123456789abcdef0123456789abcdef"
_ENDING_S = 60


@contextlib.contextmanager
def ray_head(environment: Mapping[str, str], *words: str) -> Iterator[str]:
    """Start a head with these options of `ray start` and end it; yields its address."""
    [port] = free_ports(1)
    command = [RAY, "start", "--head", "--block", f"--port={port}", "--disable-usage-stats"]
    head = subprocess.Popen(
        [*command, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = []
    try:
        for line in head.stdout:
            said.append(line)
            if "Ray runtime started" in line:
                break
        else:
            pytest.fail("".join(said))
        yield f"127.0.0.1:{port}"
    finally:
        started = psutil.Process(head.pid).children(recursive=True)
        for process in (head, *started):
            with contextlib.suppress(psutil.Error):
                process.kill()
        head.wait()
        psutil.wait_procs(started, timeout=_ENDING_S)
        head.stdout.close()


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in found]
