"""Runs over several hosts: as on one, with a token only, and never past a lost host in silence."""

import re
import subprocess
import threading

import psutil
import pytest
from hosts import parted
from safetensors.torch import load_file

LIMIT_S = 300
LOSS_S = 120
"""More than Ray needs to give up a host, which conftest.py has shortened, and what follows."""
APART = ["learner.placement=strict_spread", "+learner.node_labels.pool=train"]
WARM = [*APART, "warmstart.steps=1000000", "warmstart.batch_size=8"]
NUM_STEPS = 15


def finish(process, limit_s=LIMIT_S):
    """Return a command's exit code and what it has yet to say."""
    said = process.communicate(timeout=limit_s)[0]
    return process.returncode, said


def wait_for(process, text):
    """Read what a command says until it is this, and return it all."""
    heard = []
    impatience = threading.Timer(LIMIT_S, process.kill)
    impatience.start()
    try:
        for line in process.stdout:
            heard.append(line)
            if text in line:
                return "".join(heard)
    finally:
        impatience.cancel()
    pytest.fail(f"it ended with {process.wait()} and never said {text!r}:\n{''.join(heard[-30:])}")


@pytest.fixture(scope="module", autouse=True)
def strangers(cluster):
    """Hosts that try to join with another token, and with none, as long as they like."""
    host, found = cluster.hosts[1], {}
    for name, token in (("wrong", "f" * 32), ("none", None)):
        known = {k: v for k, v in cluster.environment.items() if not k.startswith("RAY_AUTH")}
        known["RAY_AUTH_MODE"] = "token" if token else "disabled"
        words = ["--address", cluster.address, "--node-ip-address", host.address]
        found[name] = subprocess.Popen(
            host.command(
                cluster.program("ray"), "start", *words, "--temp-dir", f"{cluster.folder}/{name}"
            ),
            env=known | ({"RAY_AUTH_TOKEN": token} if token else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    return found


@pytest.fixture(scope="module", autouse=True)
def alone(cluster, recipe, environment, tmp_path_factory):
    """The run of `broken` on one host, with a Ray of its own; begun early, for others only wait."""
    folder = tmp_path_factory.mktemp("alone")
    words = [*recipe, f"run_dir={folder}/run", f"steps={NUM_STEPS}", "ray.num_cpus=2"]
    with (folder / "said.txt").open("w") as said:
        run = subprocess.Popen(
            [cluster.program("rlpost"), "train", *words],
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
    yield run, folder
    run.terminate()
    run.wait(timeout=LIMIT_S)


def test_a_host_that_does_not_see_the_runs_files_is_named(cluster, recipe):
    where = [
        f"run_dir={cluster.hidden}/run",
        "learner.num_ranks=1",
        "+learner.node_labels.last=yes",
    ]
    code, said = finish(cluster.rlpost("warmstart", *recipe, *WARM, *where))
    assert code == 2, said
    assert "learner-0 on node 10.77.0.3 failed in load: this host does not see" in said
    assert f"{cluster.hidden}/run/model" in said


def test_a_silent_host_ends_the_run_by_name_and_can_come_back(cluster, recipe):
    silent = cluster.hosts[2]
    run = cluster.rlpost("warmstart", *recipe, *WARM, f"run_dir={cluster.folder}/silent")
    wait_for(run, "warm start 50/")
    silent.cut()
    code, said = finish(run, LOSS_S)
    assert code == 1
    assert re.search(r"learner-\d on node 10\.77\.0\.3 died during update: ", said), said[-3000:]
    seen = cluster.manage("status")
    assert seen.returncode == 1
    assert "host-3 10.77.0.3: NOT in the cluster" in seen.stdout
    silent.mend()
    # Ray there learns that it has been given up, and ends with all that it had.
    assert not psutil.wait_procs(silent.processes(), timeout=LOSS_S)[1]
    again = cluster.manage("start")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "host-3 10.77.0.3: alive, 3 CPU 0 GPU" in again.stdout


@pytest.fixture(scope="module")
def broken(cluster, recipe):
    """The directory of a run on three hosts: two did not reach each other, then one was killed."""
    place = [f"run_dir={cluster.folder}/broken", f"steps={NUM_STEPS}", "checkpoint.every=1"]
    where = ["learner.placement=spread", "+learner.node_labels.pool=train"]
    where += ["+rollout.node_labels.pool=sample", "+reward.node_labels.pool=sample"]
    run = cluster.rlpost("train", *recipe, *place, *where, "learner.collective_timeout_s=15")
    wait_for(run, f"step  2/{NUM_STEPS}")
    with parted(*cluster.hosts[1:]):
        told = wait_for(run, "waiting for at most")
    told += wait_for(run, f"step  9/{NUM_STEPS}")
    cluster.hosts[2].kill()
    code, said = finish(run)
    assert code == 0, said[-3000:]
    lost = r"learner-\d on node 10\.77\.0\.3 died during .*: all learner ranks go on after step \d+"
    assert re.search(lost, said), said[-3000:]
    return cluster.folder / "broken", told


def test_hosts_that_do_not_reach_each_other_are_named_and_waited_for(broken):
    said = broken[1]
    blocked = r"learner-\d \(10\.77\.0\.[23], interface eth0\) does not reach learner-\d "
    failed = rf"learner-\d on node \S+ failed in \w+: .*; {blocked}\(10\.77\.0\.[23], port \d+\): "
    assert re.search(failed, said, re.DOTALL), said[-3000:]
    assert re.search(rf"waiting for at most 900 s: {blocked}", said), said[-3000:]
    assert "mend the link or the firewall between them" in said


def compare(several, one):
    """Hold the metrics of a run on several hosts to those of a run on one, as far as they go."""
    for line, expected in zip(several, one, strict=False):
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert all(line["policy/grad_norm"] > 0 for line in several[1:])


def compare_weights(*runs):
    """Hold the exported weights of a run to those of another."""
    weights, expected = (load_file(run / "export" / "model.safetensors") for run in runs)
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        assert (tensor - expected[name]).abs().max() < 1e-5, name


@pytest.fixture(scope="module")
def one(alone):
    """The directory of the run on one host, once it has ended."""
    run, folder = alone
    assert run.wait(timeout=LIMIT_S) == 0, (folder / "said.txt").read_text()
    return folder / "run"


def test_three_hosts_and_then_two_train_as_one_does(broken, one, metrics):
    assert len(metrics(broken[0])) == len(metrics(one)) == NUM_STEPS + 1
    compare(metrics(broken[0]), metrics(one))
    compare_weights(broken[0], one)


def test_a_wrong_or_a_missing_token_neither_joins_nor_runs(cluster, recipe, strangers):
    run = cluster.rlpost("warmstart", *recipe, *WARM, host=1, token="f" * 32)
    code, said = finish(run)
    assert code == 2
    assert "the cluster does not take our token" in said
    for stranger in strangers.values():
        code, said = finish(stranger)
        assert code != 0
        assert "InvalidAuthToken" in said, said
    nodes = cluster.manage("status").stdout
    assert nodes.count("alive") == 2


def test_a_lost_head_ends_everything_and_a_new_one_goes_on(cluster, recipe, one, metrics):
    """A run on two hosts trains as one on one does, ends with the first, and is continued."""
    head, other = cluster.hosts[:2]
    folder = cluster.folder / "two"
    begun = [*recipe, f"run_dir={folder}", f"steps={NUM_STEPS}", "checkpoint.every=1"]
    begun += ["learner.placement=strict_spread", "+learner.node_labels.pair=yes"]
    begun += ["+rollout.node_labels.pair=yes", "+rollout.node_labels.pool=train"]
    lonely = [*recipe, *WARM, "learner.num_ranks=1", f"run_dir={cluster.folder}/lonely"]
    lonely += ["+learner.node_labels.pair=yes"]
    elsewhere = cluster.rlpost("warmstart", *lonely, host=1)
    run = cluster.rlpost("train", *begun)
    wait_for(elsewhere, "warm start 50/")
    wait_for(run, f"step 10/{NUM_STEPS}")
    there = other.commands()
    agents = {process for process, command in there.items() if "Agent" in command}
    assert any("VLLM" in command for command in there.values())
    head.kill()
    run.communicate(timeout=LIMIT_S)
    code, said = finish(elsewhere, LOSS_S)
    assert code == 1
    assert "Ray's head 10.77.0.1:6379 cannot be reached: " in said
    assert re.search(r"Ray's head 10\.77\.0\.1:6379 could not be reached for \d+ s", said)
    assert "the same command with resume=auto" in said
    # Ray's agents take their time to see that their raylet is gone.
    assert not psutil.wait_procs(there.keys() - agents, timeout=LOSS_S)[1]
    assert not set(other.processes()) - agents

    compare(so_far := metrics(folder), metrics(one))
    assert len(so_far) > 10
    started = cluster.manage("start")
    assert started.returncode == 0, started.stdout + started.stderr
    code, said = finish(cluster.rlpost("train", *begun, "resume=auto", host=1))
    assert code == 0, said[-3000:]
    assert len(metrics(folder)) == NUM_STEPS + 1
    compare(metrics(folder), metrics(one))
    compare_weights(folder, one)
