"""Jobs that are really submitted: on this machine, and to a Ray cluster with a dashboard."""

import os
import subprocess
import time

import pytest
from heads import RAY, TOKEN, free_ports, ray_head

from actors.programs import STARTING
from rlpost.cli import main

TINY = ["recipe=quickstart", "steps=1", "prompts_per_step=8", "warmstart.steps=1", "eval.every=0"]


@pytest.fixture
def user(tmp_path, monkeypatch, environment):
    """Have this process be the user's, who has submitted nothing yet."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def submitted(tmp_path, user, monkeypatch):
    """A function that submits from this process."""
    monkeypatch.setenv("RLPOST_TRACEBACK", "1")

    def submit(*words):
        assert main(["submit", *TINY, f"cluster.folder={tmp_path}", *words]) == 0

    return submit


def said(capsys, *words):
    capsys.readouterr()
    assert main(["jobs", *words]) == 0
    return capsys.readouterr().out


def wait_for(words, log, limit_s=120.0):
    deadline = time.monotonic() + limit_s
    while not (log.is_file() and words in log.read_text()):
        assert time.monotonic() < deadline, f"{log} has no {words!r} after {limit_s:g} s"
        time.sleep(0.1)


def test_a_job_of_this_machine_is_followed_to_its_end_and_another_stopped(
    tmp_path, submitted, capsys
):
    submitted("cluster=local", "cluster.name=whole", "ray.num_cpus=2")
    assert "state:     running" in said(capsys, "status", "whole")
    assert f"run directory: {tmp_path}/whole" in said(capsys, "logs", "whole")
    assert "state:     succeeded" in said(capsys, "status", "whole")
    assert (tmp_path / "whole" / "export" / "config.json").is_file()
    submitted("cluster=local", "cluster.name=half", "ray.num_cpus=2")
    wait_for(STARTING, tmp_path / "half.log")
    said(capsys, "stop", "half")
    said(capsys, "logs", "half")
    assert "state:     ended with 130" in said(capsys, "status", "half")
    assert not (tmp_path / "half" / "export").exists()


@pytest.fixture
def head(user, monkeypatch):
    """The dashboard's address of a cluster that asks for a token."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("PATH", f"{RAY.parent}:/usr/bin:/bin")
    dashboard, agent = free_ports(2)
    ports = [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    with ray_head(os.environ, *ports, "--num-cpus=2", "--include-dashboard=true"):
        yield f"http://127.0.0.1:{dashboard}"


def command(*words, code=0):
    """Run our command and return what it says; Ray keeps the token that a process has once read."""
    done = subprocess.run(
        [RAY.with_name("rlpost"), *words], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_jobs_of_a_cluster_with_a_dashboard(head, tmp_path, monkeypatch):
    submit = (
        "submit",
        *TINY,
        f"cluster.folder={tmp_path}",
        "cluster=ray",
        f"cluster.address={head}",
    )
    command(*submit, "cluster.name=large", "learner.num_ranks=8", "prompts_per_step=8")
    assert "the run needs" in command("jobs", "logs", "large")  # from the driver, once it is there
    assert "failed" in command("jobs", "status", "large")
    command(*submit, "cluster.name=half")
    command("jobs", "stop", "half")
    command("jobs", "logs", "half")
    rows = [line.split() for line in command("jobs", "list").splitlines()]
    states = {row[0]: row[4] for row in rows if row[0] in ("large", "half")}
    assert states == {"large": "failed", "half": "stopped"}
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN[::-1])
    assert "Invalid authentication token" in command("jobs", "status", "half", code=2)
