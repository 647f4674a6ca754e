"""The planner's memory beside DeepSpeed's own estimators."""

import pytest

from rlpost.config import load
from rlpost.planning.memory import learner_memory
from rlpost.planning.shape import policy_shape

MODEL = (
    "model.scratch={num_layers: 4, hidden_size: 1024, intermediate_size: 3072, num_heads: 16, "
    "num_kv_heads: 4}"
)
GPU = ["rollout.num_gpus=1", "learner.num_gpus=1", "model.dtype=bfloat16"]


@pytest.mark.parametrize("num_ranks", [1, 4])
def test_states_are_what_deepspeed_itself_estimates(num_ranks):
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    def ours(stage, *offload):
        ranks = [f"learner.num_ranks={num_ranks}", f"learner.zero_stage={stage}"]
        config = load("quickstart", ["ray.address=planned", *GPU, MODEL, *ranks, *offload])
        shape = policy_shape(config)
        memory = learner_memory(config, shape, micro_tokens=1)
        wide_gradients = 4 * shape.num_trained // num_ranks if not offload else 0
        device = sum(memory.states.values()) + memory.gradients + wide_gradients
        return shape, device, num_ranks * sum(memory.host.values())

    optimizer, parameters = "learner.offload_optimizer=cpu", "learner.offload_parameters=cpu"
    plain = {"num_gpus_per_node": num_ranks, "additional_buffer_factor": 1.0}
    shape, device, _ = ours(2)
    total, largest = shape.num_parameters, shape.largest_module
    _, theirs = estimate_zero2_model_states_mem_needs(total, cpu_offload=False, **plain)
    assert device == pytest.approx(theirs, rel=0.001)
    _, device, host = ours(2, optimizer)
    host_theirs, theirs = estimate_zero2_model_states_mem_needs(total, cpu_offload=True, **plain)
    assert (device, host) == pytest.approx((theirs, host_theirs), rel=0.001)
    for offload, kinds in {
        (): {"cpu_offload": False},
        (optimizer,): {"cpu_offload": True, "cpu_offload_params": False},
        (optimizer, parameters): {"cpu_offload": True, "cpu_offload_params": True},
    }.items():
        _, device, host = ours(3, *offload)
        host_theirs, theirs, layer = estimate_zero3_model_states_mem_needs(
            total, largest, zero_init=True, **kinds, **plain
        )
        # Without offloading theirs has two bytes a parameter less: 18, where stage 2 has 20.
        assert device == pytest.approx(theirs - layer, rel=0.12, abs=1)
        if offload:
            assert host == pytest.approx(host_theirs, rel=0.001)
