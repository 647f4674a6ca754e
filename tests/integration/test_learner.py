"""DeepSpeed learner groups of every shape: the same batches give the same training."""

import asyncio
import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from refusals import drop, overflowing, overflowing_sum, refused
from safetensors.torch import load_file

from actors.checkpointing import Checkpointer
from actors.launch import running
from rlpost.batching import BatchPlan, Sample, build_batches
from rlpost.checkpoints.manifest import Manifest
from rlpost.checkpoints.store import CheckpointStore
from rlpost.config import load
from rlpost.errors import CheckpointError, GuardError
from rlpost.guards import Guards
from rlpost.learning import training_phase
from rlpost.metrics import Metrics
from rlpost.models import prepare_model
from rlpost.types import Trajectory

TINY = (
    "model.scratch={num_layers: 2, hidden_size: 64, intermediate_size: 64, num_heads: 2, "
    "num_kv_heads: 1}"
)
SHAPES = [(stage, ranks) for stage in (0, 1, 2, 3) for ranks in (1, 2)]
SAME = {
    "activation checkpointing": ["model.activation_checkpointing=true"],
    "offloaded optimiser": ["learner.zero_stage=2", "learner.offload_optimizer=cpu"],
    "offloaded parameters": [
        "learner.zero_stage=3",
        "learner.offload_optimizer=cpu",
        "learner.offload_parameters=cpu",
    ],
}
OTHER = {
    "bfloat16": ["model.dtype=bfloat16"],
    "bfloat16, sharded": ["model.dtype=bfloat16", "learner.zero_stage=3"],
    "bfloat16, offloaded": ["model.dtype=bfloat16", *SAME["offloaded optimiser"]],
    "bfloat16, all offloaded": ["model.dtype=bfloat16", *SAME["offloaded parameters"]],
    "bfloat16, lora": ["model.dtype=bfloat16", "model.lora.rank=2"],
    "lora": ["model.lora.rank=2"],
    "lora, sharded": ["model.lora.rank=2", "learner.zero_stage=3"],
}


def samples(step, count=12):
    rng = random.Random(step)
    made = []
    for _ in range(count):
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


def configuration(ranks, cpus, variant):
    return load(
        "quickstart",
        [
            TINY,
            cpus,
            f"learner.num_ranks={ranks}",
            "learner.micro_batch_size=4",
            "learner.learning_rate=1e-2",
            "learner.num_cpus=0.5",
            *variant,
        ],
    )


def reconfigure(rank, config):
    """Give a learner rank another recipe: importing DeepSpeed anew would take the longest."""
    rank.config = config


def remote_disk():
    """Return what makes `shelf://` known: this disk, without saying that it is this disk.

    It is local, so that Ray copies it.
    """

    def register(_):
        from fsspec import register_implementation
        from fsspec.implementations.dirfs import DirFileSystem
        from fsspec.implementations.local import LocalFileSystem

        class Shelf(DirFileSystem):
            protocol = "shelf"

            def __init__(self, **settings):
                super().__init__(path="/", fs=LocalFileSystem(), **settings)

        register_implementation("shelf", Shelf, clobber=True)

    return register


async def curves_of(ranks, cpus, folder, variants, disk):
    """Return, for each variant, three updates' metrics and the weights after them."""
    found = {}
    async with running(configuration(ranks, cpus, []), ("learner",)) as cast:
        learner = await cast.learners()
        register = remote_disk()
        register(None)
        for actor in learner.actors:
            await actor.handle.__ray_call__.remote(register)
        for name, variant in variants.items():
            config = configuration(ranks, cpus, variant)
            config.run_dir = str(folder.parent)
            prepare_model(config, folder)
            for actor in learner.actors:
                await actor.handle.__ray_call__.remote(reconfigure, config)
            phase = training_phase(config)
            if name in SHAPES:
                await learner.load(folder, replace(phase, learning_rate=0.0), 300.0)
                found["gradients", name] = await gradients(learner, ranks)
                found["refused", name] = await refusals(learner, config, folder, phase)
            if "bfloat16" in name:
                await learner.load(folder, replace(phase, learning_rate=0.0), 300.0)
                found["repeated", name] = [await repeated(learner, count) for count in (1, 512)]
            if name == SHAPES[0]:
                found["dropout"] = await with_dropout(learner, folder, phase)
            await learner.load(folder, phase, 300.0)
            # On this disk, and on one to which files are uploaded.
            protocol = "" if ranks == 2 else "shelf://"
            store = CheckpointStore(f"{protocol}{folder.parent}/checkpoints")
            found[name] = await curve(learner, ranks, folder.parent / "export", store)
            await learner.load(folder, phase, 300.0)
            await learner.restore(store.place(2), 300.0)
            last = (await learner.update(batches_of(3, ranks), 3)).values()
            await learner.export(folder.parent / "export")
            weights = load_file(folder.parent / "export" / "model.safetensors")
            found["continued", name] = last, weights
        if disk is not None:
            found["disk", ranks] = await fill(learner, config, *disk)
    return found


async def fill(learner, config, folder, resize):
    """Write checkpoints until a small disk is full; return what was said and what is there."""
    config.run_dir, config.checkpoint.every, config.checkpoint.keep = str(folder), 1, 99
    checkpoints = Checkpointer(config, learner, "seed: 0")
    await checkpoints.after(1, {}, {})
    await checkpoints.finish()
    size_mib = checkpoints.store.read(1).size_bytes / 2**20
    resize(shutil.disk_usage(folder).used / 2**20 + 1.5 * size_mib)
    await checkpoints.after(2, {}, {})
    await checkpoints.finish()
    said = []
    # The warning before writing; and without it, the disk fills up amid the writing.
    for check_room in (checkpoints.store.check_room, lambda: None):
        checkpoints.store.check_room = check_room
        try:
            await checkpoints.after(3, {}, {})
            await checkpoints.finish()
        except CheckpointError as error:
            said.append(str(error))
    return said, checkpoints.store.steps(), checkpoints.store.newest().step


CUTS = [(count, packing) for packing in (False, True) for count in (1, 2, 3, 8)]
"""Micro-batches of a rank, and whether they are packed."""
NUM_CUT = 48  # sequences that are cut


def gradient(rank, batch, packing):
    """Return a learner rank's gradient of the batch's only minibatch, by parameter.

    The step that ends it, at a learning rate of 0, changes nothing.
    """
    from deepspeed.utils import safe_get_full_grad

    rank.engine.module.packing = packing
    rank._backward(batch.minibatches[0], None, 1, Metrics(), first=True)
    named = rank.engine.module.named_parameters()
    trained = ((name, parameter) for name, parameter in named if parameter.requires_grad)
    found = {name: safe_get_full_grad(parameter).clone() for name, parameter in trained}
    rank.engine.step()
    return found


async def gradients(learner, ranks):
    found = {}
    for count, packing in CUTS:
        size = NUM_CUT // ranks // count
        plan = replace(cut(ranks), num_minibatches=1, micro_batch_size=size)
        batches = build_batches(samples(1, NUM_CUT), plan, 1)
        assert {len(batch.minibatches[0]) for batch in batches} == {count}
        calls = [
            actor.handle.__ray_call__.remote(gradient, batch, packing)
            for actor, batch in zip(learner.actors, batches, strict=True)
        ]
        found[count, packing] = (await asyncio.gather(*calls))[0]
    return found


async def repeated(learner, count):
    """Return the gradient of a minibatch that is one sequence, so many micro-batches of it."""
    plan = replace(cut(1), num_minibatches=1, micro_batch_size=1)
    [batch] = build_batches(samples(1, 1) * count, plan, 1)
    assert len(batch.minibatches[0]) == count
    return await learner.actors[0].handle.__ray_call__.remote(gradient, batch, False)


def batches_of(step, ranks):
    return build_batches(samples(step), cut(ranks), step)


async def with_dropout(learner, folder, phase):
    """Return the metrics of a step whose two forward passes of the same weights differ."""
    await learner.load(folder, phase, 300.0)
    await learner.actors[0].handle.__ray_call__.remote(drop)
    return (await learner.update(build_batches(samples(1), cut(1), 1), 1)).values()


async def refusals(learner, config, folder, phase):
    """Return what each kind of NaN or infinity is refused with."""
    poisoned = samples(1)
    poisoned[3] = replace(poisoned[3], advantage=float("nan"))
    plan = replace(cut(learner.num_ranks), num_minibatches=1)
    good, bad = (build_batches(batch, plan, 1) for batch in (samples(1), poisoned))
    kinds = {"loss": (bad, None), "gradient": (good, overflowing), "sum": (good, overflowing_sum)}
    found = {}
    for kind, (batches, spoil) in kinds.items():
        await learner.load(folder, phase, 300.0)
        found[kind] = await refused(learner, batches, spoil, Path(config.run_dir))
    return found


def cut(ranks):
    return BatchPlan(
        num_minibatches=2,
        num_ranks=ranks,
        micro_batch_size=4,
        reduction="sequence_mean",
        max_response_tokens=8,
    )


async def curve(learner, ranks, target, store):
    """Train for three steps; a snapshot of the second is written while the third goes on."""
    values = [(await learner.update(batches_of(step, ranks), step)).values() for step in (1, 2)]
    with store.writing(2) as writing:
        await learner.snapshot(writing.url)
        values.append((await learner.update(batches_of(3, ranks), 3)).values())
        writing.commit(Manifest(step=2, files=await learner.written()))
    assert store.newest().step == 2
    await learner.export(target)
    return values, load_file(target / "model.safetensors")


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A disk of the test's own and what gives it a size in MiB; None where that is impossible."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, stderr=subprocess.DEVNULL).returncode:
        yield None
        return

    def resize(size_mib):
        size = f"remount,size={int(size_mib * 1024)}k"
        subprocess.run(["mount", "-o", size, str(folder)], check=True)

    yield folder, resize
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def curves(ray_session, cpus, tmp_path_factory, disk):
    folder = tmp_path_factory.mktemp("learner") / "model"
    found = {}
    for ranks in (1, 2):
        stages = {(s, ranks): [f"learner.zero_stage={s}"] for s in (0, 1, 2, 3)}
        others = SAME | OTHER if ranks == 1 else {}
        found |= asyncio.run(
            curves_of(ranks, cpus, folder, stages | others, disk if ranks == 2 else None)
        )
    found["start"] = load_file(folder / "model.safetensors")
    return found


@pytest.mark.parametrize("variant", [*SHAPES[1:], *SAME], ids=str)
def test_every_shape_trains_as_one_rank_without_zero(curves, variant):
    expected, weights = curves[0, 1]
    values, sharded = curves[variant]
    for one, other in zip(expected, values, strict=True):
        assert set(one) == set(other)
        for name, value in one.items():
            if name != "batch/padding_frac":  # how a batch is cut is what differs
                assert other[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    for name, tensor in weights.items():
        assert (sharded[name] - tensor).abs().max() < 1e-4, name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_cut_of_a_minibatch_gives_the_same_gradient(curves, shape):
    expected = flat(curves["gradients", (0, 1)][1, False])
    assert float(expected.norm()) > 1e-2
    for cut, found in curves["gradients", shape].items():
        assert float((flat(found) - expected).norm() / expected.norm()) < 1e-6, cut


@pytest.mark.parametrize("variant", [name for name in OTHER if "bfloat16" in name])
def test_bfloat16_gradients_add_up_over_many_micro_batches(curves, variant):
    once, often = (flat(found).float() for found in curves["repeated", variant])
    # Added in bfloat16 they would stand still after 256 of 512: half would be missing.
    assert float((often - once).norm() / once.norm()) < 1e-3


@pytest.mark.parametrize("variant", [*SHAPES, *SAME, *OTHER], ids=str)
def test_a_learner_continues_from_a_snapshot_with_the_same_bits(curves, variant):
    values, weights = curves[variant]
    last, continued = curves["continued", variant]
    assert last == values[-1]
    assert continued.keys() == weights.keys()
    assert all(torch.equal(continued[name], weights[name]) for name in weights)


def test_a_full_disk_is_told_and_leaves_the_newest_checkpoint_whole(curves):
    if ("disk", 2) not in curves:
        pytest.skip("a small disk cannot be mounted here")
    said, steps, newest = curves["disk", 2]
    assert "nearly full" in said[0]
    assert "the checkpoint of step 3 could not be written" in said[1]
    assert all("resume=auto" in text for text in said)
    assert steps == [1, 2]
    assert newest == 2


def test_ratios_that_are_not_one_to_begin_with_are_seen_and_stop_a_run(curves):
    for shape in SHAPES:
        assert max(v["policy/first_ratio_gap"] for v in curves[shape][0]) < 1e-5, shape
    guards = Guards(load("quickstart"))
    guards.look(1, {"reward/mean": 0.5, **curves["dropout"]})
    with pytest.raises(GuardError, match=r"step 1: guard first_ratio: .* as with dropout"):
        guards.enforce()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_step_is_taken_on_what_is_no_number_on_any_rank(curves, shape):
    found = curves["refused", shape]
    for message, weights, _, _ in found.values():
        assert "step 7: guard nonfinite: " in message
        assert "the optimiser step was not taken" in message
        assert "learner.learning_rate" in message
        for name, tensor in curves["start"].items():
            assert torch.equal(weights[name], tensor), name
    message, _, names, rows = found["loss"]
    assert len(names) == 1  # of one rank; all the others stop with it
    assert f"of rank {names[0][-7]};" in message
    assert "NaN" not in str(rows)
    assert "nan" in [row["advantage"] for row in rows]
    assert all(row["micro_batch_not_finite"][:1] == ["advantages"] for row in rows)
    assert all(len(row["token_ids"]) == len(row["logprobs"]) for row in rows)
    message, _, names, rows = found["gradient"]
    assert names == [f"step_000007-rank_{shape[1] - 1}.jsonl"]
    assert {tuple(row["micro_batch_not_finite"]) for row in rows} == {("gradient",)}
    assert len(rows) == 12 / shape[1]
    assert "norm over all ranks is" in found["sum"][0]
    assert not found["sum"][2]


def flat(gradient):
    return torch.cat([gradient[name].flatten() for name in sorted(gradient)])


def test_training_changes_the_weights_and_the_first_ratio_is_one(curves):
    values, weights = curves[0, 1]
    assert values[0]["policy/kl_old"] >= 0
    assert any(v["policy/ratio_max"] > 1.0001 for v in values)
    assert all(v["policy/grad_norm"] > 0 for v in values)
    assert weights["model.norm.weight"].sub(1).abs().max() > 1e-3


@pytest.mark.parametrize("variant", ["bfloat16", "bfloat16, sharded"])
def test_bfloat16_trains_nearly_as_float32(curves, variant):
    values, weights = curves[variant]
    for one, other in zip(curves[0, 1][0], values, strict=True):
        assert other["policy/entropy"] == pytest.approx(one["policy/entropy"], rel=0.02)
        assert other["policy/grad_norm"] == pytest.approx(one["policy/grad_norm"], rel=0.1)
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


@pytest.mark.parametrize("variant", ["lora", "lora, sharded"])
def test_lora_changes_only_what_it_adapts_and_is_exported_merged(curves, variant):
    values, weights = curves[variant]
    assert all(v["policy/grad_norm"] > 0 for v in values)
    assert set(weights) == set(curves[0, 1][1])
    start = curves["start"]
    changed = {name for name in weights if not torch.equal(weights[name], start[name])}
    adapted = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")
    assert changed == {name for name in weights if name.endswith(adapted)}
    (_, plain), (_, sharded) = curves["lora"], curves["lora, sharded"]
    assert all((plain[name] - sharded[name]).abs().max() < 1e-4 for name in plain)
