"""The recipe for 64 GPUs: it fits by the planner's arithmetic, and what each target is sent.

Not covered: 64 GPUs.
"""

import json
import re

import pytest

from rlpost.cli import main
from rlpost.config import load
from rlpost.planning.plan import Machines, make_plan

# The shape of the recipe's model, as its configuration on the hub has it.
SHAPE = {
    "model_type": "qwen2",
    "hidden_size": 5120,
    "intermediate_size": 27648,
    "num_hidden_layers": 64,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "max_position_embeddings": 32768,
}
TARGETS = {
    "kuberay": ["cluster.image=registry.example/team/rlpost:0.1.0-gpu"],
    "slurm": ["cluster.folder=/shared/runs", "cluster.node_cpus=96"],
    "ray": ["cluster.folder=/shared/runs", "cluster.address=http://head.example:8265"],
}


def test_it_fits_eight_nodes_of_eight_gpus(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    config = load("math_64gpu", [f"model.path={tmp_path}", "ray.address=auto"])
    machines = Machines(num_cpus=96, num_gpus=8, gpu_gib=80, host_gib=1024)
    plan = make_plan(config, machines)
    assert 32.7e9 < plan.shape.num_parameters < 32.8e9
    assert len(plan.nodes) == 8
    assert 1.15 * plan.learner.peak < 80 * 2**30
    assert plan.engine.full_sequences >= config.rollout.max_num_seqs
    (warning,) = plan.warnings
    assert "a worker is asked for 512 sequences at once" in warning  # they queue, engines stay full


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_sent_has_no_gaps_and_no_privileges(target, capsys):
    words = ["recipe=math_64gpu", f"cluster={target}", *TARGETS[target]]
    assert main(["submit", *words, "--render"]) == 0
    said = capsys.readouterr()
    assert not said.err
    assert not re.search(r"latest|TODO|FIXME|CHANGE|<\w+>|hostPath|hostNetwork", said.out)
    assert "privileged: true" not in said.out
    assert "rlpost train recipe=math_64gpu run_dir=/" in said.out
    assert "math-64gpu-mhpo-seed0 resume=auto" in said.out


def test_kubernetes_is_asked_for_64_gpus(capsys):
    assert (
        main(["submit", "recipe=math_64gpu", "cluster=kuberay", *TARGETS["kuberay"], "--render"])
        == 0
    )
    text = capsys.readouterr().out
    limits = re.findall(r"limits:\n.*\n.*\n +nvidia.com/gpu: '(\d+)'", text)
    replicas = re.findall(r"groupName: (\w+)\n.*\n.*\n +replicas: (\d+)", text)
    assert (limits, replicas) == (["8", "8"], [("learner", "4"), ("rollout", "4"), ("cpu", "1")])


def test_slurm_is_asked_for_64_gpus(capsys):
    assert (
        main(["submit", "recipe=math_64gpu", "cluster=slurm", *TARGETS["slurm"], "--render"]) == 0
    )
    text = capsys.readouterr().out
    assert "#SBATCH --nodes=8\n" in text
    assert "#SBATCH --gres=gpu:8\n" in text
    # 8 ranks of 4 CPUs, 32 verifiers beside them, and the driver's 4.
    assert "#SBATCH --cpus-per-task=68\n" in text
