"""The script for bare hosts, as far as it goes without any; the rest is in tests/cluster."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster" / "bare_hosts.py"


@pytest.fixture
def run(tmp_path):
    """Run the script with a hosts file of these lines, for a user who has no token yet."""

    def run(command, text, *words):
        (tmp_path / "hosts.txt").write_text(text)
        return subprocess.run(
            [sys.executable, SCRIPT, command, "--hosts", tmp_path / "hosts.txt", *words],
            env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# nobody\n\n", "names no host"),
        ("a 10.0.0.1\na 10.0.0.2\n", "hosts.txt:2: a: a name of its own must come first"),
        ("--num-cpus 3\n", "hosts.txt:1: --num-cpus: a name of its own"),
    ],
)
def test_a_hosts_file_that_makes_no_sense_is_told_by_line(run, text, said):
    done = run("start", text)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_missing_hosts_file_is_told(tmp_path):
    words = [sys.executable, SCRIPT, "stop", "--hosts", tmp_path / "none.txt"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "none.txt: No such file" in done.stderr


def test_a_host_that_cannot_be_reached_is_named_and_the_new_token_is_the_users_alone(run, tmp_path):
    done = run("start", "a 10.0.0.1 --num-cpus 3\n", "--via", "sh -c 'echo no route >&2; exit 255'")
    assert done.returncode == 1
    assert done.stderr.startswith("a: no route\n")
    made = tmp_path / ".ray" / "auth_token"
    assert len(made.read_text()) == 64
    assert made.stat().st_mode & 0o077 == 0
    assert made.read_text() not in done.stdout + done.stderr


def test_a_failed_start_shows_rays_last_words_and_leaves_no_process(run, tmp_path):
    (tmp_path / "ray").write_text("#!/bin/sh\necho no such option: $2 >&2\nexit 2\n")
    (tmp_path / "ray").chmod(0o755)
    here = ["--via", "env -u", "--bin", str(tmp_path), "--folder", f"{tmp_path}/{{name}}"]
    done = run("start", "a 10.0.0.1 --bad 3\n", *here)
    assert done.returncode == 1
    assert "a: no such option: --head" in done.stderr
    assert f"{tmp_path}/a/start.log" in done.stderr
    assert not (tmp_path / "a" / "pid").exists()
    stopped = run("stop", "a 10.0.0.1\n", *here)
    assert (stopped.returncode, stopped.stdout) == (0, "a: no Ray of ours\n")
