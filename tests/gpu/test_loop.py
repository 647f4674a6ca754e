"""The whole loop on two GPUs: vLLM on one, DeepSpeed on the other, weights by NCCL."""

import json

import pytest
import torch

pytestmark = pytest.mark.gpu


def test_a_policy_learns_on_gpus(tmp_path):
    for package in ("ray", "vllm", "deepspeed"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    if torch.cuda.device_count() < 2:
        pytest.skip(f"two GPUs are needed, and torch sees {torch.cuda.device_count()}")
    from rlpost.cli import main

    words = ["recipe=quickstart", "objective=mhpo", f"run_dir={tmp_path / 'run'}", "steps=20"]
    words += ["rollout.num_gpus=1", "learner.num_gpus=1", "weights.backend=nccl"]
    assert main(["train", *words]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first, *_, last = [json.loads(line) for line in lines]
    accuracy = next(one for one in first if one.endswith("pass@1"))
    assert last[accuracy] > first[accuracy] + 0.2
    assert last["mismatch/logprob_gap_mean"] < 0.02
