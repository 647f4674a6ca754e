"""`rlpost jobs stop NAME checkpoint=true`: the driver is told, and nobody but it.

The drivers here are small processes that take the signal as a real one does, and kubectl is a
stand-in that runs here what it is to run on the head. tests/cluster/test_slurm.py stops a real job
of Slurm so, tests/integration/test_resume.py a real driver. Not covered: KubeRay.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from rlpost.cli import main
from rlpost.cluster.jobs import Job, find, remember
from rlpost.cluster.local import LocalProcesses

DRIVER = f"""#!{sys.executable}
import signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
print("ready", flush=True)
time.sleep(600)
"""
KUBECTL = """#!/bin/bash
echo "$1 $2" >>"$0.log"
case "$1 $2" in
    "get pods") echo pod/head ;;
    exec*) while [ "$1" != -- ]; do shift; done; shift; exec "$@" ;;
esac
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a driver and a kubectl that are found before others."""
    for name, text in (("rlpost", DRIVER), ("kubectl", KUBECTL)):
        path = tmp_path / name
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield tmp_path
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if str(tmp_path) in " ".join(process.cmdline()):
                process.kill()


def wait_until(holds, what):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.02)


def said(capsys, *words, code=0):
    capsys.readouterr()
    assert main(["jobs", *words]) == code
    printed = capsys.readouterr()
    return printed.out + printed.err


def test_a_job_of_this_machine_ends_with_a_checkpoint(place, capsys):
    words = ["cluster=local", "cluster.name=mine", f"cluster.folder={place}", "ray.num_cpus=4"]
    assert main(["submit", *words]) == 0
    log = place / "mine.log"
    wait_until(lambda: log.is_file() and "ready" in log.read_text(), "the driver")
    script, _, _ = find("mine").id.partition("@")
    os.kill(int(script), signal.SIGUSR1)  # it is the driver's, and the script lives on
    assert "state:     running" in said(capsys, "status", "mine")
    assert "was told to stop" in said(capsys, "stop", "mine", "checkpoint=true")
    wait_until(lambda: LocalProcesses().state(find("mine")).over, "the end")
    assert (place / "mine.exit").read_text() == "75\n"
    assert "state:     stopped after a checkpoint" in said(capsys, "status", "mine")
    told = said(capsys, "stop", "mine", "checkpoint=true", code=2)
    assert "mine stopped after a checkpoint: there is no driver to tell" in told


def sent(target, name, kind="rayjob"):
    job = Job(
        name=name,
        target=target,
        id=f"{kind}/{name}",
        where="team",
        log="",
        submitted="2026-01-01T00:00:00+00:00",
    )
    remember(job)
    return job


def test_on_kubernetes_the_driver_alone_is_told_and_no_cluster_begins_anew(place, capsys):
    name = f"told-{os.getpid()}"
    sent("kuberay", name)
    train = f"rlpost train run_dir=/data/runs/{name} resume=auto"
    shell = subprocess.Popen(
        ["bash", "-c", f"{train}; echo ended with $?"], stdout=subprocess.PIPE, text=True
    )
    with shell:
        assert shell.stdout.readline() == "ready\n"
        said(capsys, "stop", name, "checkpoint=true")
        assert shell.stdout.readline() == "ended with 75\n"
    asked = (place / "kubectl.log").read_text().splitlines()
    assert asked == ["get pods", "exec pod/head", f"patch rayjob/{name}"]
    told = said(capsys, "stop", name, "checkpoint=true", code=1)
    assert f"no rlpost train of {name} runs on the head" in told


@pytest.mark.parametrize(
    ("target", "kind", "message"),
    [
        ("ray", "job", "On the cluster's head, pkill -USR1 -nf '[r]lpost train .*/mine '"),
        ("kuberay", "raycluster", "a cluster to work in, and its driver is yours: end it there"),
    ],
)
def test_where_nobody_can_tell_the_driver_the_message_says_who_can(
    target, kind, message, place, capsys
):
    remember(replace(sent(target, "mine", kind), where="http://head:8265"))
    assert message in said(capsys, "stop", "mine", "checkpoint=true", code=2)
