"""The real loop: Ray, vLLM, DeepSpeed and verifiers on this machine's CPU."""

import contextlib
import os
import threading
import time
from collections import Counter
from ipaddress import ip_address
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import ray
import torch
from safetensors.torch import load_file

from actors import processes, programs, runtime
from actors.compare import compare
from actors.learner import LearnerRank
from rlpost.checkpoints.store import CheckpointStore
from rlpost.config import load
from rlpost.errors import GuardError, WeightSyncError
from rlpost.reporting.comparison import Comparison, overrides_of

REPOSITORY = Path(__file__).parents[2]
GSM8K = REPOSITORY.parent / "shared" / "data" / "gsm8k"
ENDING_S = 15
HALVED = (
    "model.scratch={num_layers: 2, hidden_size: 128, intermediate_size: 128, num_heads: 4, "
    "num_kv_heads: 2}"
)


def test_every_step_is_recorded_and_its_phases_sum_to_it(run_dir, metrics):
    lines = metrics(run_dir)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    for line in lines:
        phases = [
            value
            for name, value in line.items()
            if name.startswith("time/") and name != "time/step_s"
        ]
        assert sum(phases) == pytest.approx(line["time/step_s"], rel=0.05)


def test_learner_and_vllm_agree_on_equal_weights(run_dir, metrics):
    for line in metrics(run_dir)[1:]:
        assert line["mismatch/logprob_gap_mean"] < 1e-5
        assert line["weights/version"] == line["step"]
        assert line["staleness/max"] == 0


def test_rollouts_and_checkpoint_are_complete(run_dir):
    assert pq.read_table(run_dir / "rollouts" / "step_000001.parquet").num_rows == 32
    checkpoint = run_dir / "checkpoints" / "step_000003"
    assert (checkpoint / "export" / "config.json").is_file()
    store = CheckpointStore(str(run_dir / "checkpoints"))
    assert {entry.path.split("/")[0] for entry in store.verify(3).files} == {
        "driver",
        "export",
        "learner",
    }


def test_the_export_is_a_transformers_model(run_dir):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(run_dir / "export")
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "export")
    ids = torch.tensor([tokenizer.encode("sun")])
    assert model(ids).logits.shape == (1, 3, len(tokenizer))


def test_the_last_lines_say_what_happened(run_dir):
    printed = (run_dir / "printed.txt").read_text()
    assert "held-out accuracy on 16 problems" in printed
    assert str(run_dir) in printed
    assert "try next:" in printed


@pytest.mark.timeout(1800)  # two runs of six processes
def test_compared_runs_on_more_workers_and_sharded_ranks_give_the_same_curve(
    run_dir, ray_session, cpus, short, metrics, tmp_path, monkeypatch
):
    shape = ["rollout.num_workers=2", "learner.num_ranks=2", "learner.zero_stage=3"]
    shape += ["rollout.num_cpus=2"]  # there is room for one cast

    def configure(label, seed):
        return load("quickstart", [*short, *shape, cpus, *overrides_of(label, seed)])

    # The second run has the actors of the first, and must not show it.
    comparison = Comparison(labels=("clip", "mhpo"), num_seeds=1, folder=tmp_path)
    with overhearing() as listening:
        assert compare(comparison, configure, "rlpost compare ...") == 0
    assert_nothing_from_outside(listening)
    for one, other in zip(metrics(run_dir), metrics(tmp_path / "mhpo" / "seed0"), strict=True):
        compared = [name for name in one if name.startswith(("policy/", "reward/", "eval/"))]
        assert set(compared) <= set(other)
        for name in compared:
            assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name
    assert all(line["policy/grad_norm"] > 0 for line in metrics(run_dir)[1:])
    assert "| mhpo |" in (tmp_path / "index.md").read_text()

    monkeypatch.setattr("actors.compare.run", lambda *_: pytest.fail("nothing was left to run"))
    assert compare(comparison, configure, "rlpost compare ...") == 0


def test_a_tensor_parallel_engine_samples_while_the_learner_learns(
    ray_session, cpus, short, metrics, tmp_path
):
    ahead = ["mode=async", "max_staleness=2", "old_logprobs=behavior", "steps=5", "eval.every=0"]
    ahead += ["oversampling=1.5", "max_replacements=3", "rollout.tensor_parallel_size=2", HALVED]
    assert programs.train(load("quickstart", [*short, *ahead, cpus, f"run_dir={tmp_path}"])) == 0
    first, *later = metrics(tmp_path)[1:]
    assert first["staleness/max"] == 0
    assert first["mismatch/logprob_gap_mean"] < 1e-5
    assert max(line["staleness/max"] for line in later) in (1, 2)
    assert all(line["policy/grad_norm"] > 0 for line in later)
    rows = pq.read_table(tmp_path / "rollouts", columns=["prompt_id", "dropped"]).to_pylist()
    trained = Counter(row["prompt_id"] for row in rows if not row["dropped"])
    assert set(trained.values()) == {4}  # a whole group, once
    assert trained.total() == 5 * 8 * 4
    replaced = Counter(row["prompt_id"] for row in rows if row["dropped"] == "no_signal")
    assert not replaced.keys() & trained.keys()
    assert len(replaced) == sum(line["group/replaced"] for line in [first, *later])


@pytest.mark.skipif(not GSM8K.is_dir(), reason="../shared/data/gsm8k is not here")
def test_gsm8k_runs_through_every_actor(ray_session, cpus, metrics, tmp_path):
    overrides = [f"data.path={GSM8K}", "steps=2", f"run_dir={tmp_path}", cpus]
    overrides += ["rollout.pipeline_parallel_size=2"]
    assert programs.train(load("gsm8k", overrides)) == 0
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [0, 1, 2]
    for line in lines[1:]:
        assert line["mismatch/logprob_gap_mean"] < 1e-5
        # The reference is the model that a policy without reward stays at.
        assert line["policy/kl_ref"] == pytest.approx(0.0, abs=1e-6)


def troubled_learner():
    """Return a learner with an adapter that is not zero to begin with, and altered on its last way.

    It is local, so that Ray copies it.
    """

    class Troubled(LearnerRank):
        def load(self, folder, phase):
            super().load(folder, phase)
            with torch.no_grad():
                for name, parameter in self.policy.named_parameters():
                    if "lora_B" in name:
                        parameter.normal_(std=0.1)

        def publish(self, version):
            memory = self.ways.by_backend["shm"].sender._memories[0]
            write = memory.write

            def altered(tensors):
                offsets, fingerprints = write(tensors)
                memory._storage[offsets[2]] ^= 1
                return offsets, fingerprints

            if version == 2:
                memory.write = altered
            return super().publish(version)

    return Troubled


def test_an_adapter_alone_makes_vllm_the_learners_policy_and_one_altered_bit_stops_the_run(
    ray_session, cpus, short, metrics, tmp_path, monkeypatch
):
    monkeypatch.setitem(processes.KINDS, "learner", troubled_learner())
    adapter = ["model.lora.rank=4", "model.lora.transfer=adapter", "warmstart.steps=0"]
    with pytest.raises(WeightSyncError) as caught:
        programs.train(load("quickstart", [*short, *adapter, cpus, f"run_dir={tmp_path}"]))
    _, line = metrics(tmp_path)
    assert line["mismatch/logprob_gap_mean"] < 1e-5
    whole = load_file(tmp_path / "model" / "model.safetensors")
    assert line["weights/size_bytes"] < sum(tensor.nbytes for tensor in whole.values()) / 10
    assert "weights of version 2 in rollout-0" in str(caught.value)
    assert "(0 missing, 1 altered of " in str(caught.value)
    assert "\n" not in str(caught.value)
    deadline = time.monotonic() + ENDING_S
    while left := actor_processes():
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.2)


def actor_processes():
    titles = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            titles += process.cmdline()[:1]
    ours = ("ray::Troubled", "ray::RolloutWorker", "ray::RewardWorker", "VLLM::")
    return [title for title in titles if title.startswith(ours)]


def test_no_file_of_a_run_holds_a_secret(run_dir, secrets):
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    kinds = {"config.yaml", "metrics.jsonl", "manifest.json", "state.json", "printed.txt"}
    assert kinds <= {path.name for path in files}
    found = [
        f"{name} in {path.relative_to(run_dir)}"
        for path in files
        for name, value in secrets.items()
        if value.encode() in path.read_bytes()
    ]
    assert not found
    # As the recipe said it: the value went no farther than the tracker.
    assert "group: ${oc.env:MY_SERVICE_TOKEN}" in (run_dir / "config.yaml").read_text()


def test_a_run_that_goes_well_measures_its_memory_and_no_guard_speaks(run_dir, metrics):
    _, *lines = metrics(run_dir)
    for process in ("driver", "learner-0", "rollout-0", "reward-0"):
        assert all(0.01 < line[f"memory/{process}_gib"] < 100 for line in lines), process
    assert all(line["policy/first_ratio_gap"] < 1e-4 for line in lines)
    names = [name for line in lines for name in line]
    assert not [name for name in names if name.startswith("guards/")]


def assert_nothing_from_outside(listening):
    """On one machine, no part of a run may be reached over a network."""
    for part in ("gcs_server", "raylet", "ray::LearnerRank", "ray::RolloutWorker"):
        assert any(part in name for name, _ in listening), part
    addresses = {(name, ip_address(ip.removeprefix("::ffff:"))) for name, ip in listening}
    assert not [(name, ip) for name, ip in addresses if not ip.is_loopback]


@contextlib.contextmanager
def overhearing():
    """Collect the listening sockets of all processes below this one, while the block lasts."""
    found, over = set(), threading.Event()

    def listen():
        while not over.wait(0.5):
            found.update(sockets())

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def sockets():
    """Return the name and address of every listening socket below this process."""
    found = []
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            name = " ".join(process.cmdline()[:1])  # one that has just ended has none
            connections = process.net_connections("inet")
            found += [(name, c.laddr.ip) for c in connections if c.status == psutil.CONN_LISTEN]
    return found


def test_this_machines_ray_asks_for_a_token_that_lies_in_no_file(ray_session):
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert not runtime.lets_in(ray.get_runtime_context().gcs_address)
    home = Path("~/.ray/auth_token").expanduser()
    assert not home.exists() or home.read_text() != os.environ["RAY_AUTH_TOKEN"]


def test_a_nearly_full_disk_ends_the_run_after_a_checkpoint_and_overlap_is_told_at_the_start(
    ray_session, cpus, short, metrics, tmp_path, caplog, monkeypatch
):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    own = ["task=custom", "task.path=letters:words", "task.verifier=letters:share"]
    own += ["warmstart.steps=0", "eval.num_prompts=4", "eval.every=1", "guards.min_free_gib=1e9"]
    with pytest.raises(GuardError, match=r"step 1: guard low_disk: .*after a checkpoint"):
        programs.train(load("quickstart", [*short, *own, cpus, f"run_dir={tmp_path}"]))
    assert CheckpointStore(str(tmp_path / "checkpoints")).newest().step == 1
    assert "guard eval_overlap: 1 of 4 evaluation prompts are trained on too" in caplog.text
    assert "'Two  STARS" in caplog.text
    first, last = metrics(tmp_path)
    assert first["guards/eval_overlap"] == last["guards/eval_overlap"] == 1
    assert last["guards/low_disk"] == 1
