"""Jobs that are really submitted, on this machine."""

import pytest

from rlpost.cli import main

TINY = ["recipe=quickstart", "steps=1", "prompts_per_step=8", "warmstart.steps=1", "eval.every=0"]


@pytest.fixture
def submitted(tmp_path, monkeypatch, environment):
    """A function that submits and one that runs `rlpost jobs`, both as their own user would."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("RLPOST_TRACEBACK", "1")

    def submit(*words):
        assert main(["submit", *TINY, f"cluster.folder={tmp_path}", *words]) == 0

    return submit


def said(capsys, *words):
    capsys.readouterr()
    assert main(["jobs", *words]) == 0
    return capsys.readouterr().out


def test_a_job_of_this_machine_is_followed_to_its_end_and_another_stopped(
    tmp_path, submitted, capsys
):
    submitted("cluster=local", "cluster.name=whole", "ray.num_cpus=2")
    assert "state:     running" in said(capsys, "status", "whole")
    assert f"run directory: {tmp_path}/whole" in said(capsys, "logs", "whole")
    assert "state:     succeeded" in said(capsys, "status", "whole")
    assert (tmp_path / "whole" / "export" / "config.json").is_file()
    submitted("cluster=local", "cluster.name=half", "ray.num_cpus=2")
    said(capsys, "stop", "half")
    said(capsys, "logs", "half")
    assert "state:     ended with 1" in said(capsys, "status", "half")  # 130, or 143 if very early
    assert not (tmp_path / "half" / "export").exists()
