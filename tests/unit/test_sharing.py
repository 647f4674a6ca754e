"""Engines that share GPUs with learner ranks: where they lie, what that costs, what is refused.

Not covered: a GPU. What sleeps and wakes is tested on a CPU, in tests/integration/test_sharing.py.
"""

import asyncio
from copy import deepcopy
from functools import reduce

import pytest

from actors.turns import Turns
from rlpost.choices import Dtype, Layout, Mode, Placement, WeightBackend
from rlpost.cluster.allocation import allocation
from rlpost.cluster.groups import worker_groups
from rlpost.cluster.kuberay_settings import KuberayConfig
from rlpost.cluster.slurm_settings import SlurmConfig
from rlpost.config import load
from rlpost.errors import ConfigError, DeadlineError
from rlpost.placing.fitting import Node, misfits, needed, terms
from rlpost.placing.seats import ROLES, benches, bundle, seats, together
from rlpost.placing.sharing import num_sharing, problems, shared_ranks, weight_backend
from rlpost.planning.plan import Machines, make_plan
from rlpost.planning.report import as_text
from rlpost.stalls.progress import Progress

WIDE = {"rollout.tensor_parallel_size": 2, "rollout.num_gpus": 2}
COLOCATED = {"layout": Layout.colocated, "rollout.num_workers": 4}
COLOCATED_WIDE = WIDE | {"layout": Layout.colocated, "rollout.num_workers": 2}
HYBRID = WIDE | {"layout": Layout.hybrid, "rollout.num_workers": 3}
NODE = Machines(num_cpus=96, num_gpus=8, gpu_gib=80, host_gib=1000)
KUBERAY = {"name": "x", "image": "x:1", "claim": "x"}


@pytest.fixture(scope="module")
def recipe():
    """Return a function that makes a recipe of four ranks with a GPU each, and these changes."""
    words = ["learner.num_ranks=4", "learner.num_gpus=1", "rollout.num_gpus=1", "ray.address=any"]
    four = load("quickstart", words)

    def changed(*changes, **more):
        config = deepcopy(four)
        for path, value in reduce(dict.__or__, changes, more).items():
            *owners, name = path.split(".")
            setattr(reduce(getattr, owners, config), name, value)
        return config

    return changed


def names(wanted):
    return [" ".join(seat.name for seat in bench) for bench in benches(wanted)]


def test_an_engine_lies_with_the_ranks_whose_gpus_it_shares_and_they_count_once(recipe):
    cores = {"rollout.num_cpus": 4, "learner.num_cpus": 1}
    wanted = seats(recipe(COLOCATED_WIDE, cores), ROLES)
    assert names(wanted) == [
        "learner-0 learner-1 rollout-0",
        "learner-2 learner-3 rollout-1",
        "reward-0",
    ]
    assert [bundle(bench) for bench in benches(wanted)][:2] == [{"CPU": 4, "GPU": 2}] * 2
    assert needed(wanted, "GPU") == 4
    assert terms(wanted, "CPU") == "CPU: 4 learner x 1 + 2 rollout x 2 + 1 reward x 0.1"
    [packed] = together(wanted)
    assert len(packed) == 3
    fewer = seats(recipe(COLOCATED, {"rollout.num_cpus": 0.5, "learner.num_cpus": 2}), ROLES)
    assert bundle(benches(fewer)[0]) == {"CPU": 2, "GPU": 1}  # they take turns on them


def test_hybrid_engines_beyond_the_learners_have_gpus_of_their_own(recipe):
    config = recipe(HYBRID)
    wanted = seats(config, ROLES)
    assert num_sharing(config) == 2
    assert names(wanted)[2:] == ["rollout-2", "reward-0"]
    assert needed(wanted, "GPU") == 4 + 2
    assert [list(shared_ranks(config, worker)) for worker in range(3)] == [[0, 1], [2, 3], []]
    assert [weight_backend(config, worker) for worker in range(3)] == ["ipc", "ipc", "nccl"]
    on_cpu = recipe(HYBRID, {"rollout.num_gpus": 0, "learner.num_gpus": 0})
    assert {weight_backend(on_cpu, worker) for worker in range(3)} == {"shm"}
    elastic = seats(recipe(HYBRID, {"rollout.min_workers": 2}), ["rollout"])
    assert [seat.elastic for seat in elastic] == [False, False, True]


def test_shared_cores_let_two_of_each_run_on_two():
    pairs = ["learner.num_ranks=2", "rollout.num_workers=2", "ray.num_cpus=2"]
    load("quickstart", ["layout=colocated", *pairs])
    with pytest.raises(ConfigError, match=r"the actors need 3\.3 CPUs .*this machine has 2: lower"):
        load("quickstart", pairs)
    with pytest.raises(ConfigError, match=r"layout=colocated: rollout\.num_workers=1 x "):
        load("quickstart", ["layout=colocated", *pairs, "rollout.num_workers=1"])


REFUSED = {
    "rollout.num_workers=3 x rollout.tensor_parallel_size=1 = 3 must equal learner.num_ranks=4": (
        COLOCATED | {"rollout.num_workers": 3}
    ),
    "learner.num_ranks=4 must be divisible by rollout.tensor_parallel_size=3": (
        HYBRID | {"rollout.tensor_parallel_size": 3}
    ),
    "4 / rollout.tensor_parallel_size=2 = 2 workers share the learner's GPUs, and": (
        HYBRID | {"rollout.num_workers": 2}
    ),
    "rollout.num_gpus=1 must be rollout.tensor_parallel_size=2 times that": (
        COLOCATED_WIDE | {"rollout.num_gpus": 1}
    ),
    "are tensor-parallel only": COLOCATED | {"rollout.pipeline_parallel_size": 2},
    "mode=async would sample meanwhile: use mode=sync": COLOCATED | {"mode": Mode["async"]},
    "the first 4 workers share the GPUs of learner ranks and are there from the start": (
        COLOCATED | {"rollout.min_workers": 2}
    ),
    "rollout.placement=spread has no effect with layout=colocated": (
        COLOCATED | {"rollout.placement": Placement.spread}
    ),
    "{'pool': 'sample'} have no effect with layout=colocated": (
        COLOCATED | {"rollout.node_labels": {"pool": "sample"}}
    ),
    "makes 2 ranks share theirs with an engine on one node": (
        COLOCATED_WIDE | {"learner.placement": Placement.strict_spread}
    ),
    "with layout=hybrid not all do: use auto": HYBRID | {"weights.backend": WeightBackend.ipc},
    "weights.backend=nccl needs a GPU for each process": (
        COLOCATED | {"weights.backend": WeightBackend.nccl}
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_share_is_refused_with_the_arithmetic(message, recipe):
    assert [text for text in problems(recipe(REFUSED[message])) if message in text]


@pytest.mark.parametrize("layout", [COLOCATED, COLOCATED_WIDE, HYBRID, {}])
def test_what_can_share_is_not_refused(layout, recipe):
    assert not list(problems(recipe(layout)))


def test_what_no_node_can_hold_together_is_refused(recipe):
    def node(number, gpus):
        return Node(name=f"10.0.0.{number}", labels={}, resources={"CPU": 16.0, "GPU": gpus})

    small = [node(number, 1.0) for number in range(4)]
    said = "learner-0 and learner-1 and rollout-0 together need 1.6 CPU and 2 GPU on one node"
    assert next(misfits(seats(recipe(COLOCATED_WIDE), ROLES), small)).startswith(said)
    apart = recipe(COLOCATED, {"learner.placement": Placement.strict_spread})
    assert not list(misfits(seats(apart, ROLES), small))
    said = "learner.placement=strict_spread puts 8 actors on 4 nodes, and 3 can hold one"
    assert next(misfits(seats(apart, ROLES), [node(4, 4.0), *small[:2]])).startswith(said)


def test_pods_and_nodes_are_sized_for_gpus_that_count_once(recipe):
    cores = {"rollout.num_workers": 4, "learner.num_cpus": 2, "rollout.num_cpus": 3}
    colocated = recipe(COLOCATED, cores)
    group, cpu = worker_groups(colocated, KuberayConfig(**KUBERAY, node_gpus=2))
    assert (group.name, group.pods) == ("learner", 2)
    assert (group.size.num_gpus, group.size.num_cpus) == (2, 6)
    assert cpu.size.num_gpus == 0
    learner, rollout, _ = worker_groups(recipe(HYBRID), KuberayConfig(**KUBERAY))
    assert (learner.name, learner.size.num_gpus) == ("learner", 4)
    assert (rollout.name, rollout.size.num_gpus) == ("rollout", 2)
    slurm = SlurmConfig(name="x", folder="/shared", node_gpus=4)
    assert allocation(colocated, slurm).nodes == 1
    assert allocation(recipe(cores), slurm).nodes == 2


def test_the_plan_shows_both_models_on_one_gpu_and_warns_where_they_do_not_fit(recipe):
    cores = {"rollout.num_cpus": 4, "learner.num_cpus": 2.5}
    config = recipe(COLOCATED, cores, {"model.dtype": Dtype.bfloat16, "learner.zero_stage": 3})
    large = {"num_layers": 32, "hidden_size": 4096, "intermediate_size": 11008, "num_heads": 32}
    for name, value in large.items():
        setattr(config.model.scratch, name, value)
    plan = make_plan(config, NODE)
    assert plan.nodes == [{"learner": 4, "rollout": 4, "reward": 1}]
    assert "rollout" not in plan.actors
    assert plan.transfer.backend == "ipc"
    assert plan.shared.states == sum(plan.learner.states.values())
    assert plan.shared.engine == int(0.9 * 80 * 2**30)
    said = "4 share the GPUs of a learner rank, by turns, and have 1.5 CPUs more; on each GPU:"
    assert said in as_text(config, plan)
    [warning] = [text for text in plan.warnings if "on a shared GPU" in text]
    left = int(100 * (1 - 1.15 * plan.shared.states / (80 * 2**30))) / 100
    assert f"use rollout.gpu_memory_utilization={left:g}, or " in warning
    config.rollout.gpu_memory_utilization = left
    assert not [text for text in make_plan(config, NODE).warnings if "on a shared GPU" in text]
    assert make_plan(recipe(HYBRID), NODE).transfer.backend == "ipc and nccl"


def test_engines_begin_beside_each_other_and_never_beside_the_learner():
    async def play():
        turns = Turns(Progress())
        log, both = [], asyncio.Barrier(2)

        async def begin(name):
            async with turns.beginning(name, 60):
                await both.wait()  # neither gets here without the other
                log.append("begins")

        async with turns.learner:
            beginning = [asyncio.ensure_future(begin(name)) for name in "ab"]
            await asyncio.sleep(0.01)
            log.append("learns")
        await asyncio.sleep(0)
        async with turns.learner:
            log.append("learns")
        await asyncio.gather(*beginning)
        assert log == ["learns", "begins", "begins", "learns"]
        async with turns.learner:
            with pytest.raises(
                DeadlineError, match=r"c waited 0\.01 s for the learner, whose GPUs"
            ):
                async with turns.beginning("c", 0.01):
                    pass
        async with turns.beginning("c", 60):  # one that gave up has left nothing behind
            assert turns.learner.locked()
        assert not turns.learner.locked()

    asyncio.run(play())
