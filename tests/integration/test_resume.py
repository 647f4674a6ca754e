"""A run killed or stopped goes on from its newest checkpoint and ends with the same bits."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from actors import programs
from actors.workshop import Recording
from rlpost.cli import main
from rlpost.config import load
from rlpost.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]
KILLED = Path(__file__).with_name("killed.py")
LIMIT_S = 900
VANISHING_S = 30
KILLS = [("checkpoint", 2), ("learn", 1)]
"""Amid the second step's checkpoint; then, in the life after it, as the learner learns it again."""
STOPPED = 75


def settings(short, run_dir):
    asked = ["checkpoint.every=1", "tracking.tensorboard=true"]
    return ["recipe=quickstart", *short, *asked, f"run_dir={run_dir}", "ray.num_cpus=2"]


def train(words, environment, moment=("never", 0)):
    """Run the driver to its end; return its exit code, output, and what it leaves behind."""
    process = subprocess.Popen(
        [sys.executable, str(KILLED), moment[0], str(moment[1]), *words],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    descendants, deadline = set(), time.monotonic() + LIMIT_S
    driver = psutil.Process(process.pid)
    while process.poll() is None:
        assert time.monotonic() < deadline, "the run did not end"
        with contextlib.suppress(psutil.Error):
            descendants.update(driver.children(recursive=True))
        time.sleep(0.2)
    left = psutil.wait_procs(list(descendants), timeout=VANISHING_S)[1]
    return process.returncode, process.stdout.read(), [one for one in left if one.is_running()]


@pytest.fixture(scope="module")
def broken(tmp_path_factory, short, environment, ray_session, cpus):
    """The directory of a run with two kills and a stop, and what its first two lives printed.

    Each life continues the one before; the first two are processes of their own.
    """
    folder, outputs = tmp_path_factory.mktemp("broken") / "run", []
    words = settings(short, folder)
    for moment in KILLS:
        code, printed, left = train(words, environment, moment)
        assert code == -signal.SIGKILL, printed[-3000:]
        assert not left, f"outlived their driver: {left}"
        outputs.append(printed)
        words = [*settings(short, folder), "resume=auto"]
    stop(words, cpus)
    # Without a final export, a run directory's policy is that of its newest checkpoint.
    assert programs.export(folder, folder.with_name("policy")) == 0
    assert programs.train(load(None, [*words, cpus])) == 0
    return folder, outputs


def stop(words, cpus):
    """Let a run that is to write no checkpoint be asked to stop amid the second step."""
    phase = Recording.phase

    def asking(self, name):
        if name == "learn":
            os.kill(os.getpid(), signal.SIGUSR1)
        phase(self, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recording, "phase", asking)
        assert main(["train", *words, "checkpoint.every=0", cpus]) == STOPPED


def lines(run_dir):
    """Return a run's metrics without times, and what the machine had left."""
    found = []
    for text in (run_dir / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        timed = [name for name in line if name.endswith(("_s", "_gib"))]
        found.append({name: value for name, value in line.items() if name not in timed})
    return found


@pytest.mark.timeout(1800)
def test_a_run_killed_twice_and_stopped_ends_with_the_bits_of_one_never_interrupted(
    run_dir, broken
):
    folder, printed = broken
    assert "continuing after step 1 from" in printed[1]
    assert "warmstart is kept" in printed[1]
    assert (folder / "checkpoints" / "step_000002").is_dir()
    assert (folder.with_name("policy") / "model.safetensors").is_file()
    assert lines(folder) == lines(run_dir)
    assert [line["step"] for line in lines(folder)] == [0, 1, 2, 3]
    assert all(line["policy/grad_norm"] > 0 for line in lines(run_dir)[1:])
    weights = [(run / "export" / "model.safetensors").read_bytes() for run in (run_dir, folder)]
    assert weights[0] == weights[1]
    assert weights[0] != (run_dir / "warmstart" / "model.safetensors").read_bytes()


def test_tensorboard_shows_each_step_of_the_killed_run_once(broken):
    events = EventAccumulator(str(broken[0] / "tensorboard"))
    events.Reload()
    curve = [(event.step, event.value) for event in events.Scalars("policy/loss")]
    assert [step for step, _ in curve] == [1, 2, 3]
    expected = [line["policy/loss"] for line in lines(broken[0])[1:]]
    assert [value for _, value in curve] == pytest.approx(expected, rel=1e-6)


def test_a_finished_run_says_so_and_stays_as_it_is(broken, short, caplog):
    folder = broken[0]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    with caplog.at_level("INFO"):
        assert programs.train(load(None, [*settings(short, folder), "resume=auto"])) == 0
    assert "finished already: all 3 steps are done" in caplog.text
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    changed = {path.name for path in before.keys() | after if before.get(path) != after.get(path)}
    assert changed <= {"metrics.jsonl"}
    with pytest.raises(ConfigError, match=r"holds a run already .*resume=auto"):
        programs.train(load(None, settings(short, folder)))
    changed = [*settings(short, folder), "resume=auto", "steps=6", "learner.learning_rate=1"]
    with pytest.raises(ConfigError, match=r"learner\.learning_rate: 0\.0004 -> 1\.0\. The run"):
        programs.train(load(None, changed))
