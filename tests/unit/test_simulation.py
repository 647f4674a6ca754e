"""The simulator: virtual time, the engine against a slow loop, and rates found again."""

import asyncio
import json
import random
import shutil
from statistics import median

import pytest
import torch

from rlpost.cli import main
from rlpost.config import load
from rlpost.errors import DataError
from rlpost.reporting.rollouts_log import write_rollouts
from rlpost.reporting.tracking import JsonlTracker
from rlpost.scheduling import Loads
from rlpost.simulation.calibration import calibrate, fit_engine
from rlpost.simulation.clock import run, virtual_loop
from rlpost.simulation.engine import Engine, EngineRates
from rlpost.simulation.learning import RankLoad, SimulatedLearner
from rlpost.simulation.rates import DrawnShapes, GroupShape, Rates, RecordedShapes, Responses
from rlpost.simulation.records import RecordedGroup, Records, read_records
from rlpost.simulation.running import simulate

AHEAD = ["mode=async", "old_logprobs=behavior", "eval.every=0"]
ROOM = "ray.address=simulated"


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def test_a_sleep_passes_at_once_and_work_makes_timers_late():
    seen = []

    async def sleeper(seconds):
        await asyncio.sleep(seconds)
        seen.append((seconds, virtual_loop().time()))

    async def program():
        sleeping = asyncio.gather(sleeper(1e6), sleeper(3.0), sleeper(1.0))
        await asyncio.sleep(2.0)
        virtual_loop().spend(5.0)
        await sleeping

    run(program())
    assert seen == [(1.0, 1.0), (3.0, 7.0), (1e6, pytest.approx(1e6))]


def test_a_wait_without_end_is_an_error():
    async def program():
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="nothing will bring about"):
        run(program())


def test_requests_go_to_the_worker_with_the_fewest():
    loads, rng, plain, held = Loads(5), random.Random(0), [0] * 5, []
    for _ in range(300):
        if held and rng.random() < 0.45:
            index = held.pop(rng.randrange(len(held)))
            loads.give_back(index)
            plain[index] -= 1
        else:
            expected = plain.index(min(plain))
            held.append(loads.take())
            assert held[-1] == expected
            plain[expected] += 1


def token_by_token(rates, slots, groups):
    """Return each group's end, decoding step by step: an engine written as a loop."""
    now, running, ends = 0.0, [], {}
    waiting = [[g, length, False] for g, (_, lengths) in enumerate(groups) for length in lengths]
    prefilled = set()
    while running or waiting:
        while waiting and len(running) < slots:
            g, length, _ = waiting.pop(0)
            if g not in prefilled:
                prefilled.add(g)
                now += groups[g][0] * rates.prefill_per_token_s
            running.append([g, length])
        now += rates.decode_base_s + rates.decode_per_sequence_s * len(running)
        for sequence in running:
            sequence[1] -= 1
            if not sequence[1]:
                ends[sequence[0]] = now
        running = [sequence for sequence in running if sequence[1]]
    return [ends[g] for g in range(len(groups))]


@pytest.mark.parametrize("seed", range(5))
def test_the_engine_takes_as_long_as_a_loop_over_tokens(seed):
    rng = random.Random(seed)
    rates = EngineRates(
        decode_base_s=0.02, decode_per_sequence_s=0.003, prefill_per_token_s=rng.choice([0.0, 1e-3])
    )
    groups = [(rng.randint(1, 30), [rng.randint(1, 40) for _ in range(4)]) for _ in range(7)]
    slots = rng.choice([3, 10, 64])
    ends = [0.0] * len(groups)

    async def program():
        engine = Engine(rates, slots)
        engine.resume(0)

        async def one(index, group):
            await engine.generate(*group)
            ends[index] = virtual_loop().time()

        await asyncio.gather(*(one(index, group) for index, group in enumerate(groups)))
        return engine.work()

    work = run(program())
    assert ends == pytest.approx(token_by_token(rates, slots, groups), rel=1e-4)
    assert work.busy_s == pytest.approx(max(ends), rel=1e-4)
    assert work.num_tokens == pytest.approx(sum(sum(lengths) for _, lengths in groups))


@pytest.mark.parametrize("in_flight", ["keep", "wait"])
def test_new_weights_freeze_responses_or_wait_for_them(in_flight):
    async def program():
        rates = EngineRates(decode_base_s=1.0, prefill_per_token_s=0.5)
        engine = Engine(rates, 8, in_flight=in_flight)
        engine.resume(0)

        async def publish():
            await asyncio.sleep(10.5)
            await engine.pause()
            await asyncio.sleep(100.0)
            engine.resume(1)

        publishing = asyncio.ensure_future(publish())
        spans = await engine.generate(4, [5, 20])
        ended = virtual_loop().time()
        await publishing
        return spans, ended, engine.work().paused_s

    spans, ended, paused_s = run(program())
    assert paused_s == pytest.approx(100.0)
    assert spans[0] == [(5, 0)]
    if in_flight == "wait":
        assert (spans[1], ended) == ([(20, 0)], pytest.approx(22.0))
    else:
        assert [version for _, version in spans[1]] == [0, 1]
        assert sum(tokens for tokens, _ in spans[1]) == 20
        # The prompt's four tokens at first, and they with the 8.5 sampled so far once more.
        assert ended == pytest.approx(2.0 + 20.0 + 100.0 + 0.5 * (4 + 8.5))


def test_a_synchronous_step_takes_what_arithmetic_says():
    config = load("quickstart", ["steps=4", "eval.every=0", "learner.micro_batch_size=192"])
    rates = Rates(
        decode_base_s=0.1,
        decode_per_sequence_s=0.001,
        verify_s=0.01,
        learner_tokens_per_s=1000.0,
        publish_s=0.5,
        weight_bytes=100.0,
        weight_bytes_per_s=50.0,
        driver_per_trajectory_s=0.002,
    )
    shape = GroupShape(prompt_tokens=6, lengths=(4,) * 8, rewards=(0.0, 1.0) * 4)
    done = simulate(config, rates, RecordedShapes([shape]), num_skipped=1)
    sequences = 24 * 8
    expected = {
        "rollout": 4 * (0.1 + sequences * 0.001) + sequences * 0.01,
        "learn": sequences * 10 / 1000.0 * 4 / 3,  # two minibatches: old logprobs come first
        "publish": 0.5 + 2.0,
        "batch": sequences * 0.002,
    }
    for values in done.steps[1:]:
        for name, seconds in expected.items():
            assert values[f"time/{name}_s"] == pytest.approx(seconds, rel=1e-3), name
        assert values["time/step_s"] == pytest.approx(sum(expected.values()), rel=1e-3)
    assert done.ages == {0: 3 * sequences}


def test_an_update_takes_as_long_as_its_slowest_rank():
    config = load("quickstart", ["learner.num_ranks=2", "minibatches=1", ROOM])
    rates = Rates(decode_base_s=1.0, learner_tokens_per_s=10.0)
    loads = [
        RankLoad(minibatches=((10,), (10, 20)), num_tokens=35, num_trained=7),
        RankLoad(minibatches=((40,), (5, 5)), num_tokens=50, num_trained=8),
    ]

    async def program():
        metrics = await SimulatedLearner(config, rates, None).update(loads, 1)
        return virtual_loop().time(), metrics.values()

    seconds, values = run(program())
    assert seconds == pytest.approx((40 + 30) / 10)
    assert values["tokens/trained"] == 15
    assert values["batch/padding_frac"] == pytest.approx(5 / 90)


def test_ahead_of_the_learner_a_step_takes_the_longer_of_the_two_and_no_token_is_too_old():
    config = load(
        "quickstart", [*AHEAD, "max_staleness=2", "steps=30", "rollout.num_workers=3", ROOM]
    )
    shapes = DrawnShapes(Responses(prompt_tokens=8, length_mean=3, length_std=2))
    learner_tokens_per_s = 2000.0
    for decode_s, slower in ((1e-3, "learner"), (10.0, "rollouts")):
        rates = Rates(decode_base_s=decode_s, learner_tokens_per_s=learner_tokens_per_s)
        done = simulate(config, rates, shapes, num_skipped=5)
        assert max(done.ages) <= 2
        steps = done.steps[6:]
        step_s = sum(values["time/step_s"] for values in steps)
        learn_s = sum(values["time/learn_s"] for values in steps)
        if slower == "learner":
            assert step_s == pytest.approx(learn_s, rel=0.01)
        else:
            busy_s = sum(work.busy_s for work in done.work)
            assert busy_s == pytest.approx(3 * step_s, rel=0.2)
            assert step_s > 2 * learn_s


def test_the_time_that_new_weights_took_is_no_decoding():
    now, groups, lines = 0.0, [], []
    for length, pause_s in ((4, 3.0), (8, 1.0), (12, 2.0), (16, 5.0)):
        end = now + 0.5 * length + pause_s
        shape = GroupShape(prompt_tokens=1, lengths=(length,), rewards=(0.0,))
        groups.append(
            RecordedGroup(
                step=1,
                worker="rollout-0",
                shape=shape,
                num_trained=1,
                asked_s=now,
                sampled_s=end,
                scored_s=end,
            )
        )
        times = {"clock/published_s": now + 1 + pause_s, "time/publish_s": pause_s}
        lines.append({"step": 1, "weights/sync_s": pause_s, **times})
        now = end
    records = Records(lines=lines, groups=groups, num_skipped=0)
    rates, request_s = fit_engine(load("quickstart"), records)
    assert rates.decode_base_s + rates.decode_per_sequence_s == pytest.approx(0.5, rel=0.05)
    assert request_s == pytest.approx(0.0, abs=0.1)


def changed(run_dir, change):
    """Return a copy of a run directory with other metrics."""
    folder = run_dir / "changed"
    shutil.copytree(run_dir / "rollouts", folder / "rollouts", dirs_exist_ok=True)
    (folder / "metrics.jsonl").write_text(change((run_dir / "metrics.jsonl").read_text()))
    return folder


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_runs_rates_are_found_again_in_its_own_records(mode, tmp_path):
    modes = {"sync": ["eval.every=0"], "async": [*AHEAD, "max_staleness=1"]}
    config = load(
        "quickstart",
        [
            *modes[mode],
            "steps=12",
            "rollout.max_num_seqs=64",
            "sampling.max_response_tokens=400",
            "rollout.num_workers=2",
            ROOM,
            "model.scratch.max_position_embeddings=4096",
        ],
    )
    rates = Rates(
        decode_base_s=0.02,
        decode_per_sequence_s=0.001,
        prefill_per_token_s=0.0004,
        verify_s=0.002,
        learner_tokens_per_s=3000.0,
        publish_s=0.1,
        weight_bytes=1e6,
        weight_bytes_per_s=2e5,
        driver_per_trajectory_s=0.001,
    )
    shapes = DrawnShapes(Responses(prompt_tokens=20, length_mean=60, length_std=60))
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")

    def record(step, values, groups):
        tracker.log(step, values)
        if step:
            write_rollouts(tmp_path / "rollouts", step, groups)

    simulated = simulate(config, rates, shapes, num_skipped=2, record=record)
    tracker.close()
    for num_skipped, change, message in (
        (12, lambda text: text, "none is left to measure"),
        (2, lambda text: text.replace("clock/published_s", "x"), "record it again with this"),
        (2, lambda text: text.replace('published_s": ', 'published_s": -'), "clock was set back"),
    ):
        with pytest.raises(DataError, match=message):
            read_records(changed(tmp_path, change), num_skipped)
    records = read_records(tmp_path, 2)
    found = calibrate(config, records)
    for batch in (8, 64):  # by the ends of groups alone, and with a queue: no more than roughly
        step_s, found_s = (
            r.decode_base_s + batch * r.decode_per_sequence_s for r in (rates, found)
        )
        assert found_s == pytest.approx(step_s, rel=0.25), found
    assert found.verify_s == pytest.approx(rates.verify_s, rel=0.1)
    assert found.learner_tokens_per_s == pytest.approx(rates.learner_tokens_per_s, rel=0.02)
    assert found.driver_per_trajectory_s == pytest.approx(0.001, rel=0.02)
    again = simulate(
        config, found, RecordedShapes([g.shape for g in records.steady_groups]), num_skipped=2
    )
    first, second = (
        median(values["time/step_s"] for values in done.steps[3:]) for done in (simulated, again)
    )
    assert second == pytest.approx(first, rel=0.1)


def test_the_command_prints_a_report_and_tells_mistakes(capsys):
    words = ["simulate", "recipe=quickstart", "steps=4", "rollout.num_workers=100"]
    speed = ["cluster.decode_base_s=0.02", "cluster.learner_tokens_per_s=4000"]
    assert main([*words, *speed, "cluster.length_mean=3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["num_workers"] == 100
    assert report["staleness"] == {"0": 1.0}
    assert report["step_s"] == pytest.approx(sum(report["phases"].values()), rel=0.05)
    assert main([*words, *speed]) == 0
    assert "bottleneck" in capsys.readouterr().out
    for wrong, message in {
        "cluster.decode_base=1": "unknown field cluster.decode_base; did you mean",
        "cluster.verify_s=soon": "cluster.verify_s must be a number of 0 or more, got soon",
        "cluster.warmup_steps=4": "steps=4 leaves nothing after cluster.warmup_steps=4",
        "from=nowhere": "from=nowhere: no run directory",
        "--fast": "--fast: expected field=value",
    }.items():
        assert main([*words, *speed, wrong]) == 2
        assert message in capsys.readouterr().err
    assert main(words) == 2
    assert "cluster.decode_base_s is not known: measure it" in capsys.readouterr().err
