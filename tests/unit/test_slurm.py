"""The batch script that `rlpost submit cluster=slurm` renders.

tests/cluster/test_slurm.py runs it where there is a Slurm.
"""

import re
import shlex
import subprocess
from functools import cache

import pytest

from rlpost.cli import main
from rlpost.cluster.slurm import Slurm
from rlpost.config import load
from rlpost.errors import ConfigError

FOLDER = {"folder": "/shared/team"}


@cache
def configured(*overrides):
    return load("gsm8k_8gpu", [*overrides, "ray.address=auto"])


def script(overrides=(), **words):
    target = Slurm(FOLDER | words, "run")
    target.check(overrides)
    config = configured(*overrides)
    return target.render(config, ["recipe=gsm8k_8gpu", *overrides])["job.sbatch"]


def asked(text):
    return dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", text, re.MULTILINE))


def assigned(text):
    return dict(re.findall(r"^export (\w+)=(.*)$", text, re.MULTILINE))


def test_a_run_of_64_gpus_is_sized_as_by_hand():
    text = script(["learner.num_ranks=32", "rollout.num_workers=32", "reward.num_workers=64"])
    options = asked(text)
    # Beside 8 GPUs with 4 CPUs each, 28 of 60 CPUs are left to verifiers.
    assert (options["nodes"], options["gres"]) == ("8", "gpu:8")
    assert options["cpus-per-task"] == "64"  # 32 + 28 + the driver's 4
    assert options["mem"] == f"{(32 + 28) * 8 + 8 * 32 + 16 + 8}G"
    assert assigned(text)["ray_cpus"] == "60"
    assert options["signal"] == "B:USR1@900"
    assert options["time"] == "1-00:00:00"


def test_ray_has_cpus_for_any_actor_beside_any_gpu():
    text = script(["learner.num_cpus=5", "rollout.num_cpus=1", "reward.num_workers=1"])
    assert assigned(text)["ray_cpus"] == "40"
    assert asked(text)["cpus-per-task"] == str(4 * 5 + 4 * 1 + 1 + 4)


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ({"partition": "h100"}, ("partition", "h100")),
        ({"account": "team"}, ("account", "team")),
        ({"gres": "gpu:h100"}, ("gres", "gpu:h100:8")),
        ({"limit_s": "5430"}, ("time", "0-01:30:30")),
        ({"warn_s": "60"}, ("signal", "B:USR1@60")),
    ],
)
def test_a_setting_changes_its_own_option_alone(words, option):
    before, after = asked(script()), asked(script(**words))
    assert {name: after[name] for name in after if after[name] != before.get(name)} == dict(
        [option]
    )
    assert before.keys() <= after.keys()


def test_a_changed_step_count_changes_the_command_alone():
    before, after = script().splitlines(), script(["steps=7"]).splitlines()
    changed = [line for line in after if line not in before]
    assert changed == [
        "train=(rlpost train recipe=gsm8k_8gpu steps=7 run_dir=/shared/team/run resume=auto)"
    ]
    assert len(before) == len(after)


def test_a_spread_role_has_a_node_for_each_of_its_actors():
    assert asked(script(["rollout.placement=strict_spread"]))["nodes"] == "4"


def test_a_shell_reads_every_word_as_it_was_meant():
    nasty = 'task.system_prompt="it\'s $(id) `id` {x}; \\\\"'
    text = script([nasty], **{"env.NOTE": "a 'b' $HOME"})
    start = text.index("train=(")
    (line,) = re.findall(r"train=\((.*?)\)\n\n#", text[start:], re.DOTALL)
    assert nasty in shlex.split(line)
    shown = 'printf "%s\\n" "${train[@]}" "$NOTE"'
    head = text[: text.index("# From here on")]
    done = subprocess.run(["bash", "-c", head + shown], capture_output=True, text=True, check=True)
    assert nasty in done.stdout.splitlines()
    assert done.stdout.splitlines()[-1] == "a 'b' $HOME"
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "overrides", "message"),
    [
        ({"folder": ""}, [], "folder must be the absolute path of a folder that all nodes see"),
        ({"folder": "runs"}, [], "folder must be the absolute path"),
        ({"warn_s": "50000"}, [], "at most half of limit_s=86400"),
        ({"partition": "a b"}, [], "partition must be a word"),
        ({"interface": "$(id)"}, [], "interface must be one"),
        ({"setup": "env.sh"}, [], "setup must be the absolute path"),
        ({"image": "x:1"}, [], "unknown field cluster.image"),
        ({"env.MY_TOKEN": "x"}, [], "have it in the environment that the job starts in"),
        ({"node_cpus": "4"}, [], "more than the 0 that cluster.node_cpus leaves to actors"),
        ({}, ["+learner.node_labels.disk=fast"], "no node has the labels of learner.node_labels="),
        ({"node_gpus": "2"}, ["rollout.placement=strict_pack"], "and none has that: node1 ("),
        ({}, ["ray.address=x"], "ray.address is decided by the cluster"),
        ({}, ["+task.parameters.api_key=anything"], "holds a secret"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(words, overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        script(overrides, **words)


def test_the_script_is_written_or_printed_and_nothing_sent(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))  # no sbatch there
    words = ["submit", "recipe=gsm8k_8gpu", "cluster=slurm", "cluster.folder=/not/here"]
    assert main([*words, f"out={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1].endswith(f"mkdir -p /not/here && sbatch {tmp_path}/job.sbatch")
    assert main([*words, "--render"]) == 0
    assert (tmp_path / "job.sbatch").read_text() == capsys.readouterr().out
    assert main(words) == 2
    assert "cluster.folder=/not/here is not there: make it" in capsys.readouterr().err
    assert main([*words[:-1], f"cluster.folder={tmp_path}"]) == 2
    assert "sbatch is not on this machine's PATH" in capsys.readouterr().err
