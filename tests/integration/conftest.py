"""One Ray for all tests that run in this process, and what they share."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors.runtime import ray_runtime
from rlpost.config import load

REPOSITORY = Path(__file__).parents[2]
RLPOST = Path(sys.executable).with_name("rlpost")


@pytest.fixture(scope="session")
def cpus() -> str:
    """What Ray may hand out; the machine may have fewer, since actors wait for each other."""
    return "ray.num_cpus=8"


@pytest.fixture(scope="session")
def ray_session(cpus: str) -> Iterator[None]:
    os.environ.update(user_code(), PYTHONDONTWRITEBYTECODE="")
    made_up = "ray.num_gpus=4"  # Ray hands them out; whoever used one would find none
    with ray_runtime(load("quickstart", [cpus, made_up]).ray):
        yield


def user_code() -> dict[str, str]:
    """Return the environment in which runs find the verifier of `short`, and what we found."""
    paths = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, paths)))}


@pytest.fixture(scope="session")
def secrets() -> dict[str, str]:
    """Variables of a user whose values are nobody's business."""
    names = ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_SERVICE_TOKEN")
    return {name: f"hush-{name.lower().replace('_', '-')}-7f3a9c" for name in names}


@pytest.fixture(scope="session")
def environment(secrets: dict[str, str]) -> dict[str, str]:
    """What a command of ours is started with."""
    return {**os.environ, **secrets, **user_code(), "PYTHONDONTWRITEBYTECODE": ""}


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
def run_dir(
    tmp_path_factory: pytest.TempPathFactory, short: list[str], environment: dict[str, str]
) -> Path:
    """What the command leaves after a short run with a checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    settings = [*short, "checkpoint.every=3", f"run_dir={folder}", "ray.num_cpus=2"]
    settings += ["tracking.wandb.group=${oc.env:MY_SERVICE_TOKEN}", "tracking.tensorboard=true"]
    done = subprocess.run(
        [str(RLPOST), "train", "recipe=quickstart", *settings],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "printed.txt").write_text(done.stdout + done.stderr)
    return folder


@pytest.fixture(scope="session")
def metrics() -> Callable[[Path], list[dict[str, float]]]:
    """Read what a run recorded."""

    def read(run_dir: Path) -> list[dict[str, float]]:
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return read
