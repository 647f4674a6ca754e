"""Weights into a real vLLM: proved, refused when altered; and what the death of one looks like."""

import asyncio
import contextlib
import os
import signal
import time
from types import SimpleNamespace

import psutil
import pytest
import ray
import torch

from actors.launch import running
from actors.policy_source import PolicySource
from actors.publish import RolloutClient, ShmSender
from rlpost.config import load
from rlpost.controller import Controller, Parts
from rlpost.errors import LostError, WeightSyncError
from rlpost.learning import TokenPolicy
from rlpost.models import load_policy, load_tokenizer, prepare_model
from rlpost.types import Prompt, Sampling

LONG = 200
SAMPLING = Sampling(max_response_tokens=6, temperature=1.0, seed=3)


@pytest.fixture(scope="module")
def config(cpus):
    long = f"sampling.max_response_tokens={LONG}"
    return load("quickstart", [cpus, "rollout.timeout_s=300", "eval.every=0", long])


def prompt(config):
    ids = tuple(load_tokenizer(config).encode("sun -> "))
    return Prompt(id="p", text="sun -> ", token_ids=ids, answer="nus")


def logprobs_of(model, trajectory):
    """Return a transformers model's logprobs of a trajectory's tokens."""
    ids = torch.tensor([trajectory.prompt_ids + trajectory.token_ids])
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, len(trajectory.prompt_ids) :] = True
    with torch.no_grad():
        return model(ids, torch.ones_like(ids, dtype=torch.bool), mask)[0][mask]


def gap(model, group):
    """Return the mean difference between vLLM's logprobs and those of a transformers model."""
    differences = [
        logprobs_of(model, one) - torch.tensor(one.behavior_logprobs) for one in group.trajectories
    ]
    return float(torch.cat(differences).abs().mean())


def shaken(policy):
    """Change the weights, and return them."""
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}


async def under_way(config, pool, policy, publish, states):
    """Replace the weights three times under 64 responses; return those and the gaps by version."""
    asking = [
        asyncio.ensure_future(
            pool.generate(prompt(config), 8, Sampling(max_response_tokens=LONG, seed=seed))
        )
        for seed in range(8)
    ]
    for version in (2, 3, 4):
        await pool.generate(prompt(config), 1, SAMPLING)  # the others go on as far meanwhile
        states[version] = shaken(policy)
        await publish(version)
    trajectories = [t for group in await asyncio.gather(*asking) for t in group.trajectories]
    found = {}
    for version, state in states.items():
        policy.load_state_dict(state)
        model = TokenPolicy(policy, 1.0)
        for index, one in enumerate(trajectories):
            found[index, version] = logprobs_of(model, one) - torch.tensor(one.behavior_logprobs)
    recorded, other = [], []
    for index, one in enumerate(trajectories):
        for token, version in enumerate(one.weight_versions):
            recorded.append(abs(float(found[index, version][token])))
            other.append(abs(float(found[index, 5 - version][token])))
    return trajectories, max(recorded), sum(other) / len(other)


def keeps_statistics(worker):
    """Return whether vLLM counts what nobody reads, with each token that it samples."""
    return worker.engine.log_stats or worker.engine.output_processor.log_stats


class FlippingSender(ShmSender):
    """Turns the sign of one element after it was fingerprinted, as a broken transport would."""

    flip = False

    def send_weights(self):
        memory, write = self._memories[0], self._memories[0].write

        def altered(tensors):
            offsets, fingerprints = write(tensors)
            if self.flip:
                values = memory._storage[offsets[1] : offsets[1] + 4].view(torch.float32)
                values.neg_()
            return offsets, fingerprints

        memory.write = altered
        try:
            super().send_weights()
        finally:
            del memory.write


SILENT = SimpleNamespace(phase=lambda _: None, record=lambda *_: None)


def parts_with(pool, publish, skipped):
    """Return a controller's parts, with a learner that leaves one version unsent."""

    class Learner:
        num_ranks = 1

        async def publish(self, version):
            if version != skipped:
                await publish(version)
            return {}

    none = SimpleNamespace(draw=lambda _: [])
    return Parts(prompts=none, rollouts=pool, verifiers=None, learner=Learner(), reference=None)


async def interrupted(config, pool, policy, publish, client):
    """Break two updates off, as a learner does that dies in them; return the gap after the next."""
    for verb in ("end_bucket", "finish_weight_update"):

        def die(*_):
            raise OSError("the learner is gone")

        shaken(policy)
        setattr(client, verb, die)
        with pytest.raises(OSError, match="the learner is gone"):
            await publish(0)
        delattr(client, verb)
    await publish(0)
    [actor] = pool.crew.actors  # as if it had died before vLLM heard of the update
    await actor.handle.__ray_call__.remote(lambda w: setattr(w.intake, "_under_way", True))
    await publish(0)
    return gap(TokenPolicy(policy, 1.0), await pool.generate(prompt(config), 8, SAMPLING))


def engine_processes():
    """Return the vLLM engines that this test session has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "EngineCore" in " ".join(process.cmdline() or [process.name()]):
                found.append(process)
    assert found
    return found


async def story(config, folder):
    """Play all scenes on one worker, since starting vLLM takes longest; return what was seen."""
    policy = load_policy(config, prepare_model(config, folder))
    torch.manual_seed(0)
    async with running(config, ("rollout",)) as cast:
        pool = await cast.rollouts(folder)
        receivers = pool.changed_receivers()
        source = PolicySource(policy, 2**20)
        client = RolloutClient(receivers, source, ray.get_runtime_context().get_node_id(), 60.0)
        sender = FlippingSender(source, client, rank=0)

        async def publish(version):
            client.version = version
            await asyncio.to_thread(sender.send_weights)
            pool.published(client.lost)

        seen = {"statistics": await receivers[0].handle.__ray_call__.remote(keeps_statistics)}
        await publish(0)
        seen["interrupted"] = await interrupted(config, pool, policy, publish, client)
        states = {1: shaken(policy)}  # they differ from those that vLLM was started with
        await publish(1)
        seen["versions"] = dict(await pool.weight_versions())
        group = await pool.generate(prompt(config), 8, SAMPLING)
        again = await pool.generate(prompt(config), 8, SAMPLING)
        seen["gap"] = gap(TokenPolicy(policy, 1.0), group)
        seen["same"] = [t.token_ids for t in group.trajectories] == [
            t.token_ids for t in again.trajectories
        ]

        seen["under way"] = await under_way(config, pool, policy, publish, states)

        sender.flip = True
        try:
            await publish(5)
        except WeightSyncError as error:
            seen["flipped"] = str(error)
        sender.flip = False
        seen["after_flip"] = dict(await pool.weight_versions())
        await publish(6)

        controller = Controller(config, parts_with(pool, publish, skipped=1), None, SILENT)
        await controller.start()
        try:
            await controller.start()
        except WeightSyncError as error:
            seen["skipped"] = str(error)

        engines = engine_processes()
        [actor] = pool.crew.actors
        asking = asyncio.gather(
            *(actor.call("generate", prompt(config), 8, SAMPLING, timeout_s=60) for _ in range(8)),
            return_exceptions=True,
        )
        started = time.monotonic()
        for process in engines:
            os.kill(process.pid, signal.SIGKILL)
        await asking
        try:
            await actor.call("generate", prompt(config), 8, SAMPLING, timeout_s=60)
        except LostError as error:
            seen["death"] = str(error)
        seen["noticed_s"] = time.monotonic() - started
    seen["ended_s"] = time.monotonic() - started
    return seen


@pytest.fixture(scope="module")
def seen(config, ray_session, tmp_path_factory):
    return asyncio.run(story(config, tmp_path_factory.mktemp("transfer") / "model"))


def test_vllm_keeps_no_statistics(seen):
    assert not seen["statistics"]


def test_a_transfer_gives_vllm_the_learners_logprobs(seen):
    assert seen["versions"] == {"rollout-0": 1}
    assert seen["gap"] < 1e-5
    assert seen["same"]


def test_an_update_that_a_dead_learner_began_does_not_spoil_the_next(seen):
    assert seen["interrupted"] < 1e-5


def test_new_weights_lose_no_response_and_each_token_names_those_that_sampled_it(seen):
    trajectories, recorded, other = seen["under way"]
    assert len(trajectories) == 64
    assert {t.finish_reason for t in trajectories} <= {"stop", "length"}
    assert {version for t in trajectories for version in t.weight_versions} == {1, 2, 3, 4}
    for one in trajectories:
        assert list(one.weight_versions) == sorted(one.weight_versions)
        assert len(one.token_ids) == LONG or one.finish_reason == "stop"
    assert sum(len(set(one.weight_versions)) > 1 for one in trajectories) > 8
    assert recorded < 1e-4
    assert other > 1e-2  # under another version they would be others


def test_one_flipped_element_is_refused_by_name(seen):
    assert seen["flipped"].startswith("rollout-0 on node ")
    assert "weights of version 5" in seen["flipped"]
    assert "arrived altered" in seen["flipped"]
    assert seen["after_flip"] == {"rollout-0": 4}


def test_a_worker_that_missed_a_transfer_is_named(seen):
    assert seen["skipped"].startswith("rollout-0 serves weights of version 0 after version 1")


def test_a_killed_engine_is_named_with_its_node_and_cause(seen):
    assert seen["death"].startswith("rollout-0 on node ")
    assert "vLLM's engine died" in seen["death"]
    assert "log: " in seen["death"]
    assert seen["ended_s"] < 15
