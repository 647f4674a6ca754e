"""The real loop: Ray, vLLM, DeepSpeed and verifiers on this machine's CPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

REPOSITORY = Path(__file__).parents[2]
GSM8K = REPOSITORY.parent / "shared" / "data" / "gsm8k"
RLPOST = Path(sys.executable).with_name("rlpost")
LIMIT_S = 900


def train(*overrides):
    """Run `rlpost train` and return what it printed."""
    done = subprocess.run(
        [str(RLPOST), "train", *overrides],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def metrics(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A short run of the quick start with every role, two minibatches and a checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    printed = train(
        "recipe=quickstart",
        "objective=mhpo",
        f"run_dir={folder}",
        "steps=2",
        "prompts_per_step=8",
        "group_size=4",
        "warmstart.steps=5",
        "eval.num_prompts=16",
        "kl_coef=0.01",
        "checkpoint.every=2",
        "ray.num_cpus=2",
    )
    (folder / "printed.txt").write_text(printed)
    return folder


def test_every_step_is_recorded_and_its_phases_sum_to_it(run_dir):
    lines = metrics(run_dir)
    assert [line["step"] for line in lines] == [0, 1, 2]
    for line in lines:
        phases = [
            value
            for name, value in line.items()
            if name.startswith("time/") and name != "time/step_s"
        ]
        assert sum(phases) == pytest.approx(line["time/step_s"], rel=0.05)


def test_learner_and_vllm_agree_on_equal_weights(run_dir):
    for line in metrics(run_dir)[1:]:
        assert line["mismatch/logprob_gap_mean"] < 1e-5
        assert line["weights/version"] == line["step"]
        assert line["staleness/max"] == 0


def test_rollouts_and_checkpoint_are_complete(run_dir):
    assert pq.read_table(run_dir / "rollouts" / "step_000001.parquet").num_rows == 32
    checkpoint = run_dir / "checkpoints" / "step_000002"
    assert (checkpoint / "deepspeed").is_dir()
    assert (checkpoint / "export" / "config.json").is_file()


def test_the_export_is_a_transformers_model(run_dir):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(run_dir / "export")
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "export")
    ids = torch.tensor([tokenizer.encode("Spell")])
    assert model(ids).logits.shape == (1, 5, len(tokenizer))


def test_the_last_lines_say_what_happened(run_dir):
    printed = (run_dir / "printed.txt").read_text()
    assert "held-out accuracy on 16 problems" in printed
    assert str(run_dir) in printed
    assert "try next:" in printed


@pytest.mark.skipif(not GSM8K.is_dir(), reason="../shared/data/gsm8k is not here")
def test_gsm8k_runs_through_every_actor(tmp_path):
    train("recipe=gsm8k", f"data.path={GSM8K}", "steps=2", f"run_dir={tmp_path}")
    assert [line["step"] for line in metrics(tmp_path)] == [0, 1, 2]


def test_sigterm_ends_everything(tmp_path):
    process = subprocess.Popen(
        [str(RLPOST), "train", "recipe=quickstart", f"run_dir={tmp_path}", "ray.num_cpus=2"],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + LIMIT_S
    for line in process.stderr:
        if "starting vLLM" in line or time.monotonic() > deadline:
            break
    time.sleep(5)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "SIGTERM: ending all actors" in errors
