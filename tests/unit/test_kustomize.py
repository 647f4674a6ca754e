"""The files of cluster/kustomize are what `rlpost submit` renders, the overlays too."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from kubernetes_schemas import core_objects, problems

from rlpost.cli import main

FOLDER = Path(__file__).parents[2] / "cluster" / "kustomize"
OVERLAYS = {
    "kueue": ("base", ["cluster.queue=gpus"]),
    "volcano": ("64gpu", ["cluster.queue=gpus", "cluster.scheduler=volcano"]),
}


def commands():
    """Return the words of each base's command in render.sh, by the base."""
    text = (FOLDER / "render.sh").read_text().replace("\\\n", " ")
    found = [
        shlex.split(line)[1:] for line in re.findall(r"^rlpost submit .*$", text, re.MULTILINE)
    ]
    return {words[-1].removeprefix("out=$out/"): words[:-1] for words in found}


def rendered(base, folder, *words):
    """Return the files of a base, rendered with more settings."""
    assert main([*commands()[base], *words, f"out={folder}"]) == 0
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("base", ["base", "64gpu"])
def test_a_base_is_what_its_recipe_renders_to(base, tmp_path):
    there = {path.name: path.read_text() for path in (FOLDER / base).iterdir()}
    own = yaml.safe_load(there.pop("kustomization.yaml"))
    assert there == rendered(base, tmp_path), "run cluster/kustomize/render.sh and read the changes"
    assert sorted(own["resources"]) == sorted(there)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl: its kustomize builds overlays")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_what_its_settings_render_to(overlay, tmp_path):
    base, words = OVERLAYS[overlay]
    done = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER / "overlays" / overlay)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    built = {value["kind"]: value for value in yaml.safe_load_all(done.stdout)}
    files = rendered(base, tmp_path, "cluster.namespace=research", *words).values()
    expected = [yaml.safe_load(text) for text in files]
    assert built == {value["kind"]: value for value in expected}
    for value in built.values():
        assert not [problem for core in core_objects(value) for problem in problems(core)]
