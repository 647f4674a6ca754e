"""The planner: arithmetic by hand, memory beside DeepSpeed's own estimators, warnings."""

import json

import pytest

from actors.policy_source import PolicySource
from rlpost.cli import main
from rlpost.config import load
from rlpost.models import load_policy, prepare_model, shape_of_policy
from rlpost.placing.seats import seats
from rlpost.planning.nodes import fill_nodes
from rlpost.planning.plan import Machines, make_plan
from rlpost.planning.shape import num_buckets, policy_shape

ROOM = "ray.address=planned"
NODE = Machines(num_cpus=96, num_gpus=8, gpu_gib=80, host_gib=1000)
GPU = ["rollout.num_gpus=1", "learner.num_gpus=1", "model.dtype=bfloat16", ROOM]
MODEL = (
    "model.scratch={num_layers: 4, hidden_size: 1024, intermediate_size: 3072, num_heads: 16, "
    "num_kv_heads: 4}"
)


def recipe(*overrides):
    return load("quickstart", [ROOM, *overrides])


def test_the_shape_is_that_of_the_model_that_is_trained(tmp_path):
    for overrides in ([], ["model.lora.rank=4"], ["model.scratch.tie_word_embeddings=false"]):
        config = recipe(*overrides)
        shape = policy_shape(config)
        model = load_policy(config, prepare_model(config, tmp_path / str(len(overrides))))
        sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
        assert shape.num_parameters == sum(size for size, _ in sizes)
        assert shape.num_trained == sum(size for size, trained in sizes if trained)
        assert all(p.is_meta for p in shape_of_policy(config).parameters())


@pytest.mark.parametrize("bucket_mib", [1, 2, 256])
@pytest.mark.parametrize("lora", [[], ["model.lora.rank=4"]])
def test_a_transfer_fills_the_buckets_that_the_learner_fills(bucket_mib, lora, tmp_path):
    config = recipe(f"weights.bucket_mib={bucket_mib}", *lora)
    plan = make_plan(config, NODE)
    source = PolicySource(
        load_policy(config, prepare_model(config, tmp_path / "model")), bucket_mib * 2**20
    )
    assert plan.transfer.num_buckets == len(source.groups())
    assert plan.transfer.num_tensors == len(source.metadata())
    assert num_buckets((3, 3, 9, 1), 6) == 3


def test_checkpointing_and_smaller_micro_batches_hold_fewer_activations():
    def activations(*overrides):
        return make_plan(recipe(MODEL, *overrides), NODE).learner.activations

    whole = activations()
    assert activations("learner.micro_batch_size=32") == pytest.approx(whole / 2, rel=0.01)
    assert activations("model.activation_checkpointing=true") < whole / 3
    assert activations("model.dtype=bfloat16") < 0.6 * whole


def test_the_batch_in_words_and_the_kv_cache_by_hand(capsys):
    words = ["plan", "recipe=quickstart", "warmstart.steps=0", "--json"]
    words += ["learner.num_ranks=3", "epochs=2"]
    assert main([*words, "rollout.num_workers=2", "plan.node_cpus=2"]) == 0
    plan = json.loads(capsys.readouterr().out)
    batch = plan["batch"]
    assert (batch["sequences"], batch["updates"], batch["sequences_per_update"]) == (192, 4, 96)
    assert (batch["sequences_per_rank"], batch["micro_batches"]) == (32, 1)
    engine = plan["engine"]
    assert engine["kv_bytes_per_token"] == 2 * 3 * 5 * 32 * 4
    assert engine["full_sequences"] == int(0.1 * 2**30) // 3840 // 20
    assert engine["wanted"] == 12 * 8
    assert plan["actors"]["learner"] == {"count": 3, "num_cpus": 0.8, "num_gpus": 0.0}
    assert plan["nodes"] == [
        {"learner": 2, "reward": 1},
        {"learner": 1, "rollout": 1},
        {"rollout": 1},
    ]
    assert any("micro_batch_size=64 is more than the 32" in text for text in plan["warnings"])
    assert main(["plan", "recipe=quickstart", "rollout.num_workers=100"]) == 0
    assert "machines like this one: use fewer" in capsys.readouterr().out
    assert main(["plan", "recipe=quickstart"]) == 0
    printed = capsys.readouterr().out
    assert "24 prompts x group of 8 = 192 sequences a step" in printed
    assert "2 minibatches x 1 epochs = 2 updates a step, each of 96 sequences" in printed


def test_nodes_are_counted_as_placement_and_labels_let_actors_lie():
    def nodes(*overrides):
        shape = ["learner.num_ranks=4", "rollout.num_workers=2", "rollout.num_gpus=2"]
        shape += ["rollout.tensor_parallel_size=2"]
        placed = seats(recipe(*GPU, *shape, *overrides), ("learner", "rollout"))
        return fill_nodes(placed, NODE.num_cpus, 8.0)

    assert nodes() == [{"learner": 4, "rollout": 2}]
    apart = ["+learner.node_labels.pool=train", "+rollout.node_labels.pool=sample"]
    assert nodes(*apart) == [{"learner": 4}, {"rollout": 2}]
    each = [{"learner": 1, "rollout": 2}, *[{"learner": 1}] * 3]
    assert nodes("learner.placement=strict_spread") == each
    evenly = [{"learner": 1, "rollout": 1}, {"learner": 1, "rollout": 1}, *[{"learner": 1}] * 2]
    assert nodes("learner.placement=strict_spread", "rollout.placement=spread") == evenly
    wider = ["rollout.num_gpus=3", "rollout.tensor_parallel_size=3"]
    assert nodes("rollout.placement=strict_pack", *wider) == [{"learner": 4}, {"rollout": 2}]
    assert nodes(*wider) == [{"learner": 4, "rollout": 1}, {"rollout": 1}]


LARGE = (
    "model.scratch={num_layers: 48, hidden_size: 8192, intermediate_size: 28672, num_heads: 64, "
    "num_kv_heads: 8, max_position_embeddings: 65536}"
)
PROBLEMS = {
    "a learner rank needs about": [*GPU, LARGE, "learner.num_ranks=2"],
    "no node can hold a learner actor": [*GPU, "learner.num_cpus=200"],
    "9 actors x 1 GPUs = 9 GPUs on one node": [
        *GPU,
        "warmstart.steps=0",
        "prompts_per_step=27",
        "learner.num_ranks=9",
        "learner.placement=strict_pack",
    ],
    "vLLM will not start": ["rollout.kv_cache_gib=0.00005"],
    "vLLM preempts and computes anew": ["rollout.kv_cache_gib=0.002"],
    "the rest waits": ["rollout.max_num_seqs=16"],
    "rollout workers idle": ["rollout.num_workers=50"],
    "shards nothing over one rank": ["learner.zero_stage=2"],
    "of memory for": ["rollout.num_workers=90", "rollout.kv_cache_gib=20"],
}


@pytest.mark.parametrize("message", PROBLEMS)
def test_what_will_go_wrong_is_warned_of_with_a_remedy(message):
    plan = make_plan(recipe(*PROBLEMS[message]), NODE)
    [warning] = [text for text in plan.warnings if message in text]
    assert any(word in warning for word in ("use ", "raise ", "lower ", "=", "fewer"))


def test_an_ordinary_recipe_has_no_warnings_and_mistakes_are_told(capsys):
    assert make_plan(recipe(), NODE).warnings == ()
    for wrong, message in {
        "plan.node_gpu=8": "unknown field plan.node_gpu; available: node_cpus",
        "plan.gpu_gib=many": "plan.gpu_gib=many: expected a number",
        "--yaml": "--yaml: expected field=value",
        "model.path=./nowhere": "no such model folder",
    }.items():
        assert main(["plan", "recipe=quickstart", wrong]) == 2
        assert message in capsys.readouterr().err
