"""`rlpost submit cluster=slurm` on a real Slurm of made-up nodes on this machine.

Not covered: nodes with addresses of their own, GPUs, and memory that is held to its limit.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slurm_cluster import missing, slurm, slurm_says

from rlpost.cli import main
from rlpost.cluster.jobs import find

HERE = Path(__file__).parent
LIMIT_S = 900
ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY")
TINY = [
    "recipe=quickstart",
    "steps=8",
    "prompts_per_step=8",
    "group_size=4",
    "warmstart.steps=3",
    "task.verifier=patient:share",
    "eval.every=0",
    "learner.num_cpus=0.9",
    "rollout.num_cpus=1",
]
# Two CPUs a node, one of them the driver's: learner and verifier on one, the engine on the other.
NODES = ["node_cpus=2", "head_cpus=1", "shm_gib=1", "gib_per_cpu=4", "head_gib=2", "interface=lo"]

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(missing()), reason=missing() or "it is there"),
]


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A function that submits the tiny job under a name, with settings, and returns its number."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:{HERE.parents[1]}")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "shared").mkdir()

    def submit(name, *words):
        own = (f"folder={tmp_path}/shared", f"name={name}")
        settings = [f"cluster.{word}" for word in (*NODES, *own)]
        assert main(["submit", *TINY, "cluster=slurm", *settings, *words]) == 0
        return find(name).id

    return submit


def fields_of(number):
    text = slurm_says("scontrol", "show", "job", "-o", number)
    return dict(re.findall(r"(\w+)=(\S*)", text))


def wait_for(number, states):
    """Wait until a job is in one of these states.

    One that was requeued starts at once, and is not warned again before it can end.
    """
    deadline = time.monotonic() + LIMIT_S
    while (fields := fields_of(number))["JobState"] not in states:
        assert time.monotonic() < deadline, fields
        if fields["JobState"] == "PENDING" and fields["Reason"] == "BeginTime":
            changes = ("StartTime=now", "TimeLimit=30")
            slurm_says("scontrol", "update", f"JobId={number}", *changes, check=False)
        time.sleep(0.5)
    return fields


def test_a_job_that_nears_its_time_limit_writes_a_checkpoint_and_goes_on_later(tmp_path, job):
    with slurm(tmp_path, nodes=2, cpus=2, gib=12):
        number = job("tiny", "cluster.limit_s=120", "cluster.warn_s=60")
        fields = wait_for(number, ENDED)
    run, log = tmp_path / "shared" / "tiny", (tmp_path / "shared" / "tiny.log").read_text()
    assert fields["JobState"] == "COMPLETED", log
    assert int(fields["Restarts"]) >= 1
    assert "SIGUSR1: passed on to the driver" in log
    assert "the job goes back into the queue" in log
    assert re.search(r"continuing after step \d", log)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(9))
    assert (run / "export" / "config.json").is_file()
    assert not list(Path("/tmp").glob(f"rlpost-{number}"))


def test_a_job_that_is_told_to_stop_writes_a_checkpoint_and_does_not_come_back(
    tmp_path, job, capsys
):
    run = tmp_path / "shared" / "tiny"
    with slurm(tmp_path, nodes=2, cpus=2, gib=12):
        number = job("tiny", "steps=500")
        job("second")
        assert main(["jobs", "stop", "second", "checkpoint=true"]) == 2
        assert "only a running job has a step to finish" in capsys.readouterr().err
        said(capsys, "stop", "second")  # it would begin once the first has ended
        metrics = run / "metrics.jsonl"
        deadline = time.monotonic() + LIMIT_S
        while not (metrics.is_file() and len(metrics.read_text().splitlines()) > 2):
            assert fields_of(number)["JobState"] not in ENDED, said(capsys, "logs", "tiny")
            assert time.monotonic() < deadline, "no second step"
            time.sleep(0.5)
        assert "was told to stop" in said(capsys, "stop", "tiny", "checkpoint=true")
        fields = wait_for(number, ENDED)
        assert "state:     cancelled" in said(capsys, "status", "tiny")
    assert (fields["JobState"], fields["Restarts"]) == ("CANCELLED", "0")
    log = (tmp_path / "shared" / "tiny.log").read_text()
    assert "the job ends as it was told to" in log
    last = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert (run / "checkpoints" / f"step_{last:06d}" / "manifest.json").is_file()


def mode_of(folder):
    """Return a folder's permissions once it is there."""
    deadline = time.monotonic() + LIMIT_S
    while not folder.is_dir():
        assert time.monotonic() < deadline, f"{folder} did not appear"
        time.sleep(0.1)
    return folder.stat().st_mode & 0o777


def said(capsys, *words):
    capsys.readouterr()
    assert main(["jobs", *words]) == 0
    return capsys.readouterr().out


def test_a_node_whose_ray_does_not_start_is_named(tmp_path, job, capsys):
    setup = tmp_path / "setup.sh"
    setup.write_text('[ "$SLURMD_NODENAME" != node2 ] || exit 1\n')
    with slurm(tmp_path, nodes=2, cpus=2, gib=12):
        number = job("tiny", f"cluster.setup={setup}", "cluster.ready_s=40")
        job("second")
        assert "state:     pending (" in said(capsys, "status", "second")
        said(capsys, "stop", "second")
        assert "state:     cancelled" in said(capsys, "status", "second")
        wait_for(number, ("RUNNING",))
        assert mode_of(Path(f"/tmp/rlpost-{number}")) == 0o700
        log = said(capsys, "logs", "tiny")  # until it ends
        assert "state:     failed" in said(capsys, "status", "tiny")
    assert "node2 did not join Ray within ray.nodes_timeout_s=40; there are node1" in log
    assert "rlpost train ended with 1" in log


def test_slurm_has_a_place_for_64_gpus_as_they_are_asked_for(tmp_path, capsys):
    words = ["recipe=math_64gpu", "cluster=slurm", f"cluster.folder={tmp_path}"]
    assert main(["submit", *words, "cluster.node_cpus=96", f"out={tmp_path}"]) == 0
    ask = ("sbatch", "--test-only", str(tmp_path / "job.sbatch"))
    for gpus, answer in ((8, "on nodes node[1-8]"), (7, "node configuration is not available")):
        folder = tmp_path / str(gpus)
        folder.mkdir()
        with slurm(folder, nodes=8, cpus=96, gib=1024, gpus=gpus):
            done = subprocess.run(ask, capture_output=True, text=True, timeout=60, check=False)
        assert answer in done.stderr
