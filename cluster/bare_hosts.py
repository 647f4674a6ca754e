#!/usr/bin/env python3
"""Ray on a list of hosts: `bare_hosts.py start|status|stop --hosts FILE`; see cluster/README.md.

Each host gets a small shell script on the standard input of `VIA NAME sh -s`: whatever runs a
command elsewhere will do, and the token stands in no command line.
"""

import argparse
import json
import os
import secrets
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SSH = "ssh -o BatchMode=yes -o ConnectTimeout=10"
FOLDER = "/tmp/rlpost-ray-{user}"  # noqa: S108 - made with mode 700, and refused if another's

START = r"""
umask 077
mkdir -p {folder} || exit 1
if [ -L {folder} ] || ! [ -O {folder} ]; then
  echo "{folder} is another user's: choose one with --folder" >&2; exit 1
fi
if pid=$(cat {folder}/pid 2>/dev/null) && grep -qF {folder} "/proc/$pid/cmdline" 2>/dev/null; then
  echo "runs already"; exit 0
fi
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN={token} PYTHONUNBUFFERED=1 {environment}
setsid nohup {command} --block >{folder}/start.log 2>&1 </dev/null &
pid=$!
echo "$pid" >{folder}/pid
waited=0
while kill -0 "$pid" 2>/dev/null; do
  grep -q "Ray runtime started" {folder}/start.log && exit 0
  [ "$waited" -lt {limit_s} ] || {{ echo "not started after {limit_s} s" >&2; break; }}
  sleep 1; waited=$((waited + 1))
done
kill -KILL -- "-$pid" 2>/dev/null
rm -f {folder}/pid
grep -v '^[[:space:]]*$' {folder}/start.log | tail -n 3 >&2
echo "(all of it: {folder}/start.log)" >&2
exit 1
"""

STOP = r"""
pid=$(cat {folder}/pid 2>/dev/null) || {{ echo "no Ray of ours"; exit 0; }}
if grep -qF {folder} "/proc/$pid/cmdline" 2>/dev/null; then
  kill -TERM "$pid"
  waited=0
  while kill -0 "$pid" 2>/dev/null && [ "$waited" -lt 100 ]; do
    sleep 0.2; waited=$((waited + 1))
  done
  kill -KILL -- "-$pid" 2>/dev/null
fi
rm -f {folder}/pid
echo stopped
"""

STATUS = r"""
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN={token}
exec {python} - <<'PROGRAM'
import json, logging, socket, time
socket.create_connection(("{host}", {port}), 10).close()  # Ray would try for minutes
import ray
ray.init("{host}:{port}", log_to_driver=False, logging_level=logging.ERROR)
until = time.monotonic() + {limit_s}
while True:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    missing = {addresses}.difference(node["NodeManagerAddress"] for node in nodes)
    if not missing or time.monotonic() > until:
        break
    time.sleep(0.5)
print("NODES", json.dumps(nodes))
PROGRAM
"""


@dataclass(frozen=True)
class Host:
    """A line of the hosts file: what `via` calls it, its address, options of `ray start`."""

    name: str
    address: str
    options: tuple[str, ...]


class BareHostsError(Exception):
    """A message for the user."""


def main() -> int:
    """Run the command and return its exit code: 1 where a host failed, 2 for a mistake."""
    asked = _parser().parse_args()
    try:
        return COMMANDS[asked.command](asked, read_hosts(asked.hosts))
    except BareHostsError as error:
        sys.stderr.write(f"bare_hosts: {error}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bare_hosts.py", description=__doc__)
    add = parser.add_argument
    add("command", choices=COMMANDS)
    add("--hosts", type=Path, required=True, help="NAME [ADDRESS] [options of ray start], by lines")
    add("--via", default=SSH, help="what runs a command on a host (%(default)s)")
    add("--port", type=int, default=6379, help="of the head (%(default)s)")
    add("--bin", default=str(Path(sys.executable).parent), help="folder of ray and python there")
    add("--folder", default=FOLDER, help="of Ray's files there; {user}, {name} (%(default)s)")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable for Ray")
    add("--dashboard", action="store_true", help="on the head's loopback, port 8265")
    add("--limit-s", type=int, default=120, help="for each host to start (%(default)s)")
    return parser


def read_hosts(path: Path) -> list[Host]:
    """Return the hosts of a file, the head first."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BareHostsError(f"--hosts {path}: {error.strerror}") from None
    hosts: list[Host] = []
    for number, line in enumerate(lines, start=1):
        words = shlex.split(line, comments=True)
        if not words:
            continue
        name, *rest = words
        address = rest.pop(0) if rest and not rest[0].startswith("-") else name
        if name.startswith("-") or name in {host.name for host in hosts}:
            raise BareHostsError(f"{path}:{number}: {name}: a name of its own must come first")
        hosts.append(Host(name, address, tuple(rest)))
    if not hosts:
        raise BareHostsError(f"{path}: names no host; write NAME [ADDRESS] [options] lines")
    return hosts


def token() -> str:
    """Return the token of this user, after making one in ~/.ray/auth_token if there is none."""
    if found := os.environ.get("RAY_AUTH_TOKEN"):
        return found
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        sys.stdout.write(f"made a token: {path}\n")
    return path.read_text(encoding="utf-8").strip()


def start(asked: argparse.Namespace, hosts: Sequence[Host]) -> int:
    """Start the head, then all others at once, and see whether they are one cluster."""
    head, *others = hosts
    address, shown = f"{head.address}:{asked.port}", token()

    def script(host: Host, *options: str) -> str:
        words = [f"{asked.bin}/ray", "start", *options, "--node-ip-address", host.address]
        words += ["--temp-dir", _folder(asked, host), "--disable-usage-stats", *host.options]
        return START.format(
            folder=shlex.quote(_folder(asked, host)),
            token=shlex.quote(shown),
            environment=shlex.join(asked.env),
            command=shlex.join(words),
            limit_s=asked.limit_s,
        )

    dashboard = ["--include-dashboard", str(asked.dashboard).lower()]
    first = script(head, "--head", "--port", str(asked.port), *dashboard)
    rest = [script(host, "--address", address) for host in others]
    if _run(asked, [head], [first]) or _run(asked, others, rest):
        sys.stderr.write("bare_hosts: not all hosts started; `stop` ends those that did\n")
        return 1
    if _tell(asked, hosts, asked.limit_s):  # Ray says that it has started before it has joined
        return 1
    train = f"rlpost train ... ray.address={address} run_dir=FOLDER_THAT_ALL_HOSTS_SHARE"
    sys.stdout.write(f"on {head.name}, with the same token: {train}\n")
    return 0


def status(asked: argparse.Namespace, hosts: Sequence[Host]) -> int:
    """Say of each host whether its Ray is a living node of the cluster."""
    return _tell(asked, hosts, 0)


def _tell(asked: argparse.Namespace, hosts: Sequence[Host], limit_s: int) -> int:
    """Say of each host whether it is part of the cluster, once all are or the time is over."""
    head = hosts[0]
    script = STATUS.format(
        token=shlex.quote(token()),
        python=f"{asked.bin}/python",
        host=head.address,
        port=asked.port,
        addresses=f"{{{', '.join(repr(host.address) for host in hosts)}}}",
        limit_s=limit_s,
    )
    done = _on(asked, head, script)
    said = next((x for x in done.stdout.splitlines() if x.startswith("NODES ")), None)
    if done.returncode or said is None:
        sys.stderr.write(f"{head.name}: no cluster at {head.address}:{asked.port}\n")
        sys.stderr.writelines(_last(done, head))
        return 1
    nodes = {node["NodeManagerAddress"]: node for node in json.loads(said.removeprefix("NODES "))}
    for host in hosts:
        sys.stdout.write(f"{host.name} {host.address}: {_described(nodes.get(host.address))}\n")
    return int(any(host.address not in nodes for host in hosts))


def stop(asked: argparse.Namespace, hosts: Sequence[Host]) -> int:
    """End what `start` has started, and no other Ray, the head last."""
    scripts = [STOP.format(folder=shlex.quote(_folder(asked, host))) for host in hosts]
    others = _run(asked, hosts[1:], scripts[1:])
    return int(_run(asked, hosts[:1], scripts[:1]) or others)


COMMANDS: dict[str, Callable[[argparse.Namespace, Sequence[Host]], int]] = {
    "start": start,
    "status": status,
    "stop": stop,
}


def _folder(asked: argparse.Namespace, host: Host) -> str:
    user = os.environ.get("USER") or str(os.getuid())
    return asked.folder.format(user=user, name=host.name)


def _run(asked: argparse.Namespace, hosts: Sequence[Host], scripts: Sequence[str]) -> bool:
    """Run a script on each host at once, say how it went, and return whether any failed."""
    failed = False
    with ThreadPoolExecutor(max(1, min(64, len(hosts)))) as pool:
        calls = pool.map(lambda host, script: _on(asked, host, script), hosts, scripts)
        for host, done in zip(hosts, calls, strict=True):
            failed |= done.returncode != 0
            if done.returncode:
                sys.stderr.writelines(_last(done, host))
            else:
                sys.stdout.write(f"{host.name}: {done.stdout.strip() or 'started'}\n")
    return failed


def _on(asked: argparse.Namespace, host: Host, script: str) -> subprocess.CompletedProcess[str]:
    words = [*shlex.split(asked.via), host.name, "sh", "-s"]
    try:
        return subprocess.run(
            words,
            input=script,
            capture_output=True,
            text=True,
            timeout=asked.limit_s + 60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, 1, "", str(error))


def _last(done: subprocess.CompletedProcess[str], host: Host) -> Iterator[str]:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    for line in lines[-5:] or [f"`{shlex.join(done.args)}` ended with {done.returncode}"]:
        yield f"{host.name}: {line}\n"


def _described(node: dict[str, dict[str, float | str]] | None) -> str:
    if node is None:
        return "NOT in the cluster"
    amounts = " ".join(f"{node['Resources'].get(name, 0):g} {name}" for name in ("CPU", "GPU"))
    labels = {k: v for k, v in node["Labels"].items() if not k.startswith("ray.io/")}
    return f"alive, {amounts}, labels {json.dumps(labels)}"


if __name__ == "__main__":
    sys.exit(main())
