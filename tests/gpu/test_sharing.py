"""An engine and a learner rank on one GPU, by turns: vLLM sleeps, weights go by CUDA IPC."""

import json

import pytest

pytestmark = pytest.mark.gpu


def test_a_policy_learns_on_a_gpu_that_vllm_and_the_learner_share(device, tmp_path):
    for package in ("ray", "vllm", "deepspeed"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    from rlpost.cli import main

    words = ["recipe=quickstart", "objective=mhpo", f"run_dir={tmp_path / 'run'}", "steps=20"]
    words += ["layout=colocated", "rollout.num_gpus=1", "learner.num_gpus=1"]
    assert main(["train", *words, "rollout.gpu_memory_utilization=0.4"]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first, *steps = [json.loads(line) for line in lines]
    accuracy = next(one for one in first if one.endswith("pass@1"))
    assert steps[-1][accuracy] > first[accuracy] + 0.2
    assert all(line["sleep/engines"] == 1 for line in steps)
    assert steps[-1]["mismatch/logprob_gap_mean"] < 0.02
