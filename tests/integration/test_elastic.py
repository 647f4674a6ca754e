"""Rollout workers join a run as its cluster gets room for them, and leave a node in good time."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rlpost.chaos import audit
from rlpost.config import load

ELASTIC = Path(__file__).with_name("elastic.py")


@pytest.mark.timeout(600)
def test_a_worker_joins_with_a_new_node_and_leaves_it_before_it_goes(short, environment, tmp_path):
    words = [*short, "steps=2000", "eval.every=0", "tracking.rollouts_every=1"]
    words += ["rollout.num_workers=2", "rollout.min_workers=1", "rollout.num_cpus=0.5"]
    words += ["learner.num_cpus=0.3", "supervision.heartbeat_s=1", f"run_dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, str(ELASTIC), *words],
        env={**environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "[1, 2, 1]", done.stdout + done.stderr[-3000:]
    events = [json.loads(line) for line in (tmp_path / "incidents.jsonl").read_text().splitlines()]
    assert [(one["event"], one["actor"]) for one in events] == [("leaves", "rollout-1")]
    assert "is to be drained" in events[0]["cause"]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    config = load("quickstart", [*words, "ray.address=gone"])
    assert all(claim.holds for claim in audit(replace(config, steps=len(lines) - 1)))
