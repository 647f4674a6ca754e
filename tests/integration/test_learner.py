"""DeepSpeed learner groups of every shape: the same batches give the same training."""

import asyncio
import random

import pytest
from safetensors.torch import load_file

from actors.launch import running
from rlpost.batching import BatchPlan, Sample, build_batches
from rlpost.config import load
from rlpost.learning import training_phase
from rlpost.models import prepare_model
from rlpost.types import Trajectory

TINY = (
    "model.scratch={num_layers: 2, hidden_size: 64, intermediate_size: 64, num_heads: 2, "
    "num_kv_heads: 1}"
)
SHAPES = [(stage, ranks) for stage in (0, 1, 2, 3) for ranks in (1, 2)]


def samples(step):
    rng = random.Random(step)
    made = []
    for _ in range(12):
        prompt, response = rng.randint(3, 9), rng.randint(1, 7)
        trajectory = Trajectory(
            prompt_ids=tuple(rng.randrange(2, 250) for _ in range(prompt)),
            token_ids=tuple(rng.randrange(2, 250) for _ in range(response)),
            loss_mask=(True,) * response,
            behavior_logprobs=(-5.5,) * response,
            weight_versions=(0,) * response,
            text="",
            finish_reason="stop",
        )
        made.append(Sample(trajectory=trajectory, advantage=rng.gauss(0.0, 1.0)))
    return made


def configuration(stage, ranks, cpus):
    return load(
        "quickstart",
        [
            TINY,
            cpus,
            f"learner.zero_stage={stage}",
            f"learner.num_ranks={ranks}",
            "learner.micro_batch_size=4",
            "learner.learning_rate=1e-2",
            "learner.num_cpus=0.5",
        ],
    )


def reconfigure(rank, config):
    """Give a learner rank another recipe: importing DeepSpeed anew would take the longest."""
    rank.config = config


async def curves_of(ranks, cpus, folder):
    """Return, for each ZeRO stage, three updates' metrics and the weights after them."""
    found = {}
    async with running(configuration(0, ranks, cpus), ("learner",)) as cast:
        learner = await cast.learners()
        for stage in (0, 1, 2, 3):
            config = configuration(stage, ranks, cpus)
            prepare_model(config, folder)
            for actor in learner.actors:
                await actor.handle.__ray_call__.remote(reconfigure, config)
            await learner.load(folder, training_phase(config), 300.0)
            found[stage, ranks] = await curve(learner, ranks, folder.parent / f"{stage}-{ranks}")
    return found


async def curve(learner, ranks, target):
    plan = BatchPlan(
        num_minibatches=2,
        num_ranks=ranks,
        micro_batch_size=4,
        reduction="sequence_mean",
        max_response_tokens=8,
    )
    values = []
    for step in range(1, 4):
        merged = await learner.update(build_batches(samples(step), plan, step), step)
        values.append(merged.values())
    await learner.export(target)
    return values, load_file(target / "model.safetensors")


@pytest.fixture(scope="module")
def curves(ray_session, cpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("learner") / "model"
    return {
        shape: found
        for ranks in (1, 2)
        for shape, found in asyncio.run(curves_of(ranks, cpus, folder)).items()
    }


@pytest.mark.parametrize(("stage", "ranks"), SHAPES[1:])
def test_every_shape_trains_as_one_rank_without_zero(curves, stage, ranks):
    expected, weights = curves[0, 1]
    values, sharded = curves[stage, ranks]
    for one, other in zip(expected, values, strict=True):
        assert set(one) == set(other)
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    for name, tensor in weights.items():
        assert (sharded[name] - tensor).abs().max() < 1e-4, name


def test_training_changes_the_weights_and_the_first_ratio_is_one(curves):
    values, weights = curves[0, 1]
    assert values[0]["policy/kl_old"] >= 0
    assert any(v["policy/ratio_max"] > 1.0001 for v in values)
    assert all(v["policy/grad_norm"] > 0 for v in values)
    assert weights["model.norm.weight"].sub(1).abs().max() > 1e-3
