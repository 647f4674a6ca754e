"""What is remembered of submissions, and what of a job is followed; nothing is submitted here.

tests/integration/test_jobs.py runs jobs on this machine and on a Ray cluster,
tests/cluster/test_slurm.py on Slurm. Not covered: kubectl, for want of a cluster.
"""

import os
import socket
import threading

import psutil
import pytest

from rlpost.cli import main
from rlpost.cluster.following import grown
from rlpost.cluster.jobs import Job, find, remember, remembered
from rlpost.errors import ConfigError


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def job(name, *, began=None, log=""):
    began = began or psutil.Process().create_time()
    return Job(
        name=name,
        target="local",
        id=f"{os.getpid()}@{began:.2f}",
        where=socket.gethostname(),
        log=log,
        submitted=f"2026-01-01T00:00:0{len(remembered())}+00:00",
    )


def test_jobs_are_remembered_in_order_and_forgotten(capsys):
    for name in ("b", "a"):
        remember(job(name))
    assert [one.name for one in remembered()] == ["b", "a"]
    assert find("a").where == socket.gethostname()
    assert main(["jobs", "forget", "a"]) == 0
    with pytest.raises(ConfigError, match=r"nothing of this name was submitted from here; .* b$"):
        find("a")


def test_the_table_asks_whoever_runs_a_job(tmp_path, capsys):
    log = str(tmp_path / "run.log")
    remember(job("alive"))
    remember(job("gone", began=1.0, log=log))
    (tmp_path / "run.exit").write_text("1\n")
    remember(Job(**{**vars_of(job("far")), "where": "elsewhere"}))
    assert main(["jobs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "alive", "gone", "far"]
    assert lines[1].endswith("  running")
    assert lines[2].endswith("  ended with 1")
    assert "not known: far was started on elsewhere: ask there" in lines[3]


def vars_of(one):
    return {name: getattr(one, name) for name in one.__slots__}


def test_a_second_job_of_a_name_is_refused_while_the_first_goes_on(tmp_path, capsys):
    words = ["submit", "cluster=local", f"cluster.folder={tmp_path}", "cluster.name=mine"]
    remember(job("mine"))
    assert main([*words, "ray.num_cpus=4"]) == 2
    assert "mine is running as" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_growing_file_is_followed_to_the_end_of_its_job(tmp_path):
    path, over = tmp_path / "log", threading.Event()
    path.write_text("first\n")
    chunks = grown(path, over.is_set, ask_s=0.0)
    assert next(chunks) == "first\n"
    with path.open("a") as file:
        file.write("second\n")
    over.set()
    assert list(chunks) == ["second\n"]


def test_a_damaged_file_is_named(tmp_path):
    remember(job("mine"))
    (path,) = (tmp_path / "state" / "rlpost" / "jobs").iterdir()
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"is damaged: .*remove it"):
        find("mine")


@pytest.mark.parametrize(
    "words", [["status"], ["logs", "x", "tail"], ["cancel", "x"], ["stop", "x", "checkpoint"]]
)
def test_a_wrong_verb_is_refused_with_the_right_ones(words, capsys):
    assert main(["jobs", *words]) == 2
    assert "expected rlpost jobs [list] | status NAME" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cluster.folder=/data"], "address must be that of the cluster's dashboard"),
        (["cluster.address=http://head:8265"], "folder must be the absolute path"),
        (
            ["cluster.address=http://head:8265", "cluster.folder=/data", "task.system_prompt=a b"],
            "others pass through shells",
        ),
    ],
)
def test_a_ray_job_that_cannot_be_is_refused(words, message, capsys):
    assert main(["submit", "cluster=ray", *words, "--render"]) == 2
    assert message in capsys.readouterr().err


def test_a_ray_job_is_rendered_as_the_request(capsys):
    words = ["cluster.address=http://head:8265", "cluster.folder=/data", "cluster.env.A=1"]
    assert main(["submit", "recipe=gsm8k_8gpu", "cluster=ray", *words, "--render"]) == 0
    said = capsys.readouterr().out
    assert (
        "rlpost train recipe=gsm8k_8gpu run_dir=/data/gsm8k-8gpu-mhpo-seed0 resume=auto "
        "ray.address=auto"
    ) in said
    assert '"A": "1"' in said
