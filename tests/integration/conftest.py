"""One Ray for all tests that run in this process, and what they share."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors.runtime import ray_runtime
from rlpost.config import load


@pytest.fixture(scope="session")
def cpus() -> str:
    """What Ray may hand out; the machine may have fewer, since actors wait for each other."""
    return "ray.num_cpus=8"


@pytest.fixture(scope="session")
def ray_session(cpus: str) -> Iterator[None]:
    os.environ.update(user_code(), PYTHONDONTWRITEBYTECODE="")
    with ray_runtime(load("quickstart", [cpus]).ray):
        yield


def user_code() -> dict[str, str]:
    """Return the environment in which runs find the verifier of `short`."""
    return {"PYTHONPATH": str(Path(__file__).parent)}


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """What a command of ours is started with."""
    return {**os.environ, **user_code(), "PYTHONDONTWRITEBYTECODE": ""}


@pytest.fixture(scope="session")
def short() -> list[str]:
    """Overrides of the quick start for a run with every role, as short as one can be."""
    return [
        "steps=3",
        "prompts_per_step=8",
        "group_size=4",
        "warmstart.steps=3",
        "task.verifier=letters:share",
        "eval.num_prompts=16",
        "eval.every=3",
    ]


@pytest.fixture(scope="session")
def metrics() -> Callable[[Path], list[dict[str, float]]]:
    """Read what a run recorded."""

    def read(run_dir: Path) -> list[dict[str, float]]:
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return read
