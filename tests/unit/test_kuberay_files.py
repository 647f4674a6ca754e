"""The files that `rlpost submit cluster=kuberay` writes or prints, and the command in them."""

from pathlib import Path

import yaml
from kuberay_rendering import IMAGE, rendered

from rlpost.cli import main
from rlpost.cluster.kubernetes import Kuberay, as_yaml

ROOT = Path(__file__).parents[2]


def test_files_read_back_as_they_were_meant():
    words = {"env.A": "on", "env.B": "1e3", "env.C": "0o17", "env.D": "", "env.E": "null"}
    for value in rendered(words=words).values():
        assert yaml.safe_load(as_yaml(value)) == value


def test_what_a_former_rendering_left_is_removed(tmp_path, capsys):
    words = ["submit", "cluster=kuberay", f"cluster.image={IMAGE['image']}", f"out={tmp_path}"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "Nothing was submitted. To do so: kubectl apply -f " in said.out
    assert "checkpoint.every=0: after a failure there is nothing to resume from" in said.err
    claim = yaml.safe_load((tmp_path / "volume-claim.yaml").read_text())
    assert claim["metadata"]["name"] == "quickstart-mhpo-seed0-data"
    assert main([*words, "cluster.claim=mine", "checkpoint.every=5"]) == 0
    assert not capsys.readouterr().err
    assert not (tmp_path / "volume-claim.yaml").exists()


def test_what_is_printed_can_be_piped_on(capsys):
    words = ["submit", "cluster=kuberay", f"cluster.image={IMAGE['image']}", "checkpoint.every=5"]
    assert main([*words, "--render"]) == 0
    kinds = [value["kind"] for value in yaml.safe_load_all(capsys.readouterr().out)]
    assert kinds == ["PersistentVolumeClaim", "NetworkPolicy", "PodDisruptionBudget", "RayJob"]


def test_data_on_the_volume_need_not_be_here(tmp_path):
    words = ["submit", "recipe=gsm8k", "cluster=kuberay", f"cluster.image={IMAGE['image']}"]
    words += [f"out={tmp_path}", "checkpoint.every=1"]
    assert main([*words, "data.path=/data/sets/gsm8k", "model.path=/data/model"]) == 0
    assert "data.path=/data/sets/gsm8k " in (tmp_path / "rayjob.yaml").read_text()
    assert main([*words, "data.path=/elsewhere/gsm8k"]) == 2


def test_the_command_resumes_on_the_cluster():
    job = rendered(overrides=["seed=3"])["rayjob.yaml"]
    assert job["spec"]["entrypoint"] == (
        "rlpost train recipe=gsm8k_8gpu seed=3 run_dir=/data/runs/gsm8k-8gpu-run "
        "resume=auto ray.address=auto"
    )


def test_ray_version_is_that_of_the_lock():
    lock = (ROOT / "requirements" / "cpu.txt").read_text(encoding="utf-8")
    version = Kuberay(IMAGE, "run").cluster.ray_version
    assert f"\nray=={version} " in lock or f"\nray[default]=={version} " in lock
