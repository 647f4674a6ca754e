"""Recipes load, overrides work, and impossible configurations end in one clear sentence."""

import subprocess
import sys

import pytest

from rlpost.cli import main
from rlpost.config import load, recipes_dir
from rlpost.errors import ConfigError

BAD = {
    "unknown key": (["learner.zero_stag=1"], "did you mean learner.zero_stage"),
    "unknown objective field": (["objective.clip_hgih=1"], "unknown field objective.clip_hgih"),
    "wrong type": (["steps=many"], "steps"),
    "no such recipe": (["recipe=nope"], "available: gsm8k"),
    "no such objective": (["objective=ppo2"], "available: cispo, clip"),
    "group of one": (["group_size=1"], "group_size=1"),
    "batch not divisible": (["minibatches=7"], "trajectories must be divisible"),
    "steps below one": (["steps=0"], "steps must be at least 1"),
    "negative KL": (["kl_coef=-1"], "kl_coef must be 0 or more"),
    "greedy training": (["sampling.temperature=0"], "sampling.temperature must be positive"),
    "biased sampling": (["sampling.top_p=0.9"], "allow_biased"),
    "short context": (["rollout.max_model_len=19"], "rollout.max_model_len=19 is shorter"),
    "few positions": (["model.scratch.max_position_embeddings=16"], "max_position_embeddings=16"),
    "GPUs without a process": (
        ["ray.num_gpus=8", "rollout.num_gpus=4", "rollout.pipeline_parallel_size=2"],
        "rollout.tensor_parallel_size=1 x rollout.pipeline_parallel_size=2 = 2",
    ),
    "no such stage": (["learner.zero_stage=4"], "learner.zero_stage must be 0, 1, 2 or 3"),
    "offload without stage": (["learner.offload_parameters=cpu"], "needs learner.zero_stage=3"),
    "small heads": (["model.scratch.num_heads=10", "model.scratch.num_kv_heads=10"], "= 16 and"),
    "odd heads": (["model.scratch.num_heads=3"], "must be divisible"),
    "stale samples": (["mode=async"], "nothing corrects for that: use old_logprobs=behavior"),
    "negative staleness": (["max_staleness=-1"], "max_staleness must be 0 or more"),
    "oversampling in sync": (["oversampling=1.5"], "above 1 and at most 1, which is max_staleness"),
    "too much oversampling": (["mode=async", "oversampling=2.5"], "at most 2, which is max_stal"),
    "negative replacements": (["max_replacements=-1"], "max_replacements must be 0"),
    "nothing to replace": (
        ["max_replacements=4", "group_size=1", "advantage=reinforce_baseline"],
        "group_size=1 leaves no other",
    ),
    "fewer than no restarts": (["supervision.max_restarts=-1"], "supervision.max_restarts must be"),
    "more than all workers": (["rollout.min_workers=2"], "must be from 1 to rollout.num_workers=1"),
    "no sign of life": (["supervision.heartbeat_s=0"], "supervision.heartbeat_s must be positive"),
    "no checkpoint kept": (["checkpoint.keep=0"], "checkpoint.keep must be at least 1, got 0"),
    "unknown protocol": (["checkpoint.url=nowhere://x"], "fsspec knows no protocol nowhere"),
    "token budget": (["learner.micro_batch_tokens=9"], "must hold the longest sequence of 20 tok"),
    "adapter of nothing": (["model.lora.transfer=adapter"], "needs model.lora.rank from 1"),
    "nccl on CPU": (["weights.backend=nccl"], "needs GPUs"),
    "more ranks than cores": (["ray.num_cpus=2", "learner.num_ranks=4"], "4 learner x 0.8"),
    "GPUs that are not there": (["ray.num_gpus=0", "learner.num_gpus=1"], "GPUs"),
    "p range": (["objective=holder", "objective.p_min=3"], "objective.p_min=3"),
    "correction of nothing": (
        ["old_logprobs=behavior", "correction.kind=tis"],
        "correction.kind=tis would correct nothing",
    ),
    "correction range": (["correction.low=3"], "low the smaller"),
    "correction cap": (["correction.cap=0"], "correction.cap must be positive"),
    "normalized twice": (["normalize_advantages=true"], "is for advantage=reinforce_baseline"),
    "no such estimator": (["advantage=gae"], "advantage"),
    "no such verifier": (["task.verifier=guess"], "task.verifier=guess"),
    "no model folder": (["model.path=/no/such/model"], "no such model folder"),
    "missing data": (["recipe=gsm8k", "data.path=/no/such/data"], "no such file or folder"),
    "data not set": (["recipe=gsm8k"], "data.path is not set"),
    "wandb mode": (["tracking.wandb.mode=sometimes"], "online or offline"),
}


@pytest.mark.parametrize(("overrides", "said"), BAD.values(), ids=BAD.keys())
def test_a_bad_configuration_ends_in_one_sentence(overrides, said):
    with pytest.raises(ConfigError) as caught:
        load(None, overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_line_prints_the_sentence_and_returns_2(capsys):
    assert main(["train", "recipe=quickstart", "group_size=1"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("rlpost: group_size=1")
    assert "Traceback" not in printed


def test_help_lists_what_one_can_choose_and_no_schema(capsys):
    with pytest.raises(SystemExit):  # Hydra's way to end
        main(["train", "--help"])
    groups = capsys.readouterr().out.partition("(group=option)")[2].partition("== Config ==")[0]
    assert [line.split(":")[0] for line in groups.split("\n") if line] == [
        "objective",
        "recipe",
        "task",
    ]


def test_options_may_stand_between_overrides(capsys):
    assert main(["train", "recipe=quickstart", "--cfg", "job", "steps=3", "kl_coef=0.5"]) == 0
    printed = capsys.readouterr().out
    assert "steps: 3\n" in printed
    assert "kl_coef: 0.5\n" in printed


def test_a_bad_configuration_is_refused_before_any_engine_is_loaded():
    program = (
        "import sys; from rlpost.cli import main; "
        "code = main(['train', 'recipe=gsm8k', 'data.path=/nowhere']); "
        "print(code, *{'torch', 'ray', 'vllm', 'deepspeed', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "2\n"
    assert done.stderr.splitlines() == ["rlpost: data.path=/nowhere: no such file or folder"]


@pytest.mark.parametrize("objective", ["clip", "mhpo", "holder"])
def test_the_command_line_beats_the_recipe(objective):
    config = load("quickstart", [f"objective={objective}", "steps=7", "seed=3"])
    assert (config.objective.name, config.steps, config.seed) == (objective, 7, 3)


def test_the_exponent_moves_over_the_whole_run_unless_told_otherwise():
    holder = ["objective=holder", "steps=40"]
    assert load("quickstart", holder).objective.schedule_steps == 40
    own = load("quickstart", [*holder, "objective.schedule_steps=500"])
    assert own.objective.schedule_steps == 500


def test_every_recipe_loads(tmp_path):
    for split in ("train", "test"):
        row = '{"question": "1 + 1?", "answer": "#### 2"}\n'
        (tmp_path / f"{split}.jsonl").write_text(row)
    for file in (recipes_dir() / "recipe").glob("*.yaml"):
        overrides = ["ray.num_cpus=512", "ray.num_gpus=64"]
        if file.stem.startswith("gsm8k"):
            overrides.append(f"data.path={tmp_path}")
        assert load(file.stem, overrides).steps > 0


def test_a_missing_column_is_named_with_those_that_exist(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"problem": "1 + 1?", "answer": "#### 2"}\n')
    with pytest.raises(ConfigError, match=r"data.question_column=question.*problem, answer"):
        load("gsm8k", [f"data.path={tmp_path}"])
