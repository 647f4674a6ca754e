"""`rlpost plan`: reads the command line and this machine."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

import psutil

from rlpost.config import load
from rlpost.errors import ConfigError
from rlpost.machine import gpus
from rlpost.planning.plan import Machines, make_plan
from rlpost.planning.report import as_text
from rlpost.words import split_words

PREFIX = "plan."
_GPU_GIB = 80.0
_FIELDS = {
    "node_cpus": "num_cpus",
    "node_gpus": "num_gpus",
    "node_gib": "host_gib",
    "gpu_gib": "gpu_gib",
}


def main(words: Sequence[str]) -> int:
    """Print the plan of a recipe; return the exit code."""
    fields, rest = split_words(words, PREFIX)
    given = _machines(fields)
    overrides = [word for word in rest if word != "--json"]
    for word in overrides:
        if word.startswith("-") or "=" not in word:
            raise ConfigError(
                f"rlpost plan: {word}: expected field=value, {PREFIX}FIELD=value or --json"
            )
    elsewhere = bool(given) or any(w.startswith("ray.address=") for w in overrides)
    machines = replace(this_machine(), here=not elsewhere, **given)
    # What does not fit this machine is a warning here, not a refusal: the job may be for another.
    config = load(None, [*overrides, *_elsewhere(overrides)])
    plan = make_plan(config, machines)
    values = json.dumps(plan.as_json(), indent=1) + "\n"
    sys.stdout.write(values if "--json" in words else as_text(config, plan))
    return 0


def this_machine() -> Machines:
    """Return what this machine has; its GPUs are taken to have 80 GiB."""
    return Machines(
        num_cpus=float(os.cpu_count() or 1),
        num_gpus=float(len(gpus())),
        gpu_gib=_GPU_GIB,
        host_gib=psutil.virtual_memory().total / 2**30,
    )


def _elsewhere(overrides: Sequence[str]) -> list[str]:
    return [] if any(w.startswith("ray.address=") for w in overrides) else ["ray.address=planned"]


def _machines(fields: Mapping[str, str]) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, text in fields.items():
        word = f"{PREFIX}{name}={text}"
        if name not in _FIELDS:
            raise ConfigError(f"unknown field {PREFIX}{name}; available: {', '.join(_FIELDS)}")
        try:
            values[_FIELDS[name]] = float(text)
        except ValueError:
            raise ConfigError(f"{word}: expected a number") from None
        if values[_FIELDS[name]] < 0:
            raise ConfigError(f"{word}: must be 0 or more")
    return values
