"""Where a run begins, which recipes may continue it, and that random numbers go on."""

import json
import random
from copy import deepcopy
from dataclasses import asdict
from functools import cache, reduce
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from rlpost.checkpoints.manifest import Manifest, entries
from rlpost.checkpoints.randomness import rng_state, set_rng_state
from rlpost.checkpoints.recipe_changes import changes
from rlpost.checkpoints.resuming import (
    DRIVER,
    complete_export,
    driver_files,
    find_start,
    newest_of,
    store_of,
)
from rlpost.checkpoints.store import files_under
from rlpost.config import load
from rlpost.errors import CheckpointError, ConfigError
from rlpost.objective_configs import objective_configs


def recipe_of(config):
    return OmegaConf.to_yaml(asdict(config))


@cache
def recipe():
    return load("quickstart", ["checkpoint.every=1", "run_dir=here"])


def config_of(run_dir, *overrides):
    """Return a recipe with overrides, without Hydra's quarter of a second."""
    config = deepcopy(recipe())
    config.run_dir = str(run_dir)
    for override in overrides:
        field, value = override.split("=", 1)
        *path, name = field.split(".")
        owner = reduce(getattr, path, config)
        kind = type(getattr(owner, name) or "")
        setattr(owner, name, kind(yaml.safe_load(value)))
    return config


def checkpoint(config, step):
    """Write what a run writes, but for the learner's part."""
    metrics = "".join(
        json.dumps({"step": n, "unix_s": 1.5, "a": n / 7}) + "\n" for n in range(step + 1)
    )
    run_dir = Path(config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "metrics.jsonl").write_text(metrics)
    with store_of(config).writing(step) as writing:
        with files_under(f"{writing.url}/{DRIVER}") as folder:
            for name, text in driver_files(config, recipe_of(config), {"version": step}).items():
                (folder / name).write_text(text)
            found = [entry.under(DRIVER) for entry in entries(folder)]
        with files_under(f"{writing.url}/export") as folder:
            (folder / "config.json").write_text("{}")
            found += [entry.under("export") for entry in entries(folder)]
        writing.commit(Manifest(step=step, files=found))


def start(config):
    return find_start(config, recipe_of(config))


def test_a_fresh_directory_begins_at_once(tmp_path):
    found = start(config_of(tmp_path))
    assert (found.step, found.resumed, found.after_step) == (0, False, None)


def test_a_used_directory_is_not_overwritten_unasked(tmp_path):
    checkpoint(config_of(tmp_path), 2)
    with pytest.raises(ConfigError, match=r"holds a run already \(checkpoints up to step 2\)"):
        start(config_of(tmp_path))
    store_of(config_of(tmp_path)).files.rm(str(tmp_path / "checkpoints"), recursive=True)
    with pytest.raises(ConfigError, match=r"holds a run already \(metrics\.jsonl\), and resume="):
        start(config_of(tmp_path))


def test_auto_without_a_checkpoint_starts_anew_and_says_so(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n{"st')
    with caplog.at_level("INFO"):
        found = start(config_of(tmp_path, "resume=auto"))
    assert "no checkpoint in" in caplog.text
    assert "starting anew" in caplog.text
    assert (found.step, found.after_step) == (0, -1)
    assert not found.keeps_warmstart
    assert not (tmp_path / "metrics.jsonl").exists()
    config = config_of(tmp_path, "resume=auto")
    (tmp_path / "config.yaml").write_text(recipe_of(config_of(tmp_path)))
    assert start(config).keeps_warmstart
    assert not start(config_of(tmp_path, "resume=auto", "warmstart.steps=3")).keeps_warmstart


def test_auto_continues_the_newest_and_sets_metrics_back_to_it(tmp_path):
    for step in (1, 2, 3):
        checkpoint(config_of(tmp_path), step)
    config = config_of(tmp_path, "resume=auto")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "a": 0.1}\n{"step": 5')
    (tmp_path / "checkpoints" / "step_000003" / "export" / "config.json").write_text("{ }")
    found = start(config)
    assert (found.step, found.after_step) == (2, 2)
    assert found.url == str(tmp_path / "checkpoints" / "step_000002")
    assert found.state == {"version": 2}
    assert found.history == ({"a": 0.0}, {"a": 1 / 7}, {"a": 2 / 7})
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    # The damaged one is out of the way, so that it never counts among those to keep.
    assert store_of(config).steps() == [1, 2]


def test_a_path_names_a_run_its_checkpoints_or_one_of_them(tmp_path):
    for step in (1, 2):
        checkpoint(config_of(tmp_path / "a"), step)
    for path, step in (("a", 2), ("a/checkpoints", 2), ("a/checkpoints/step_000001", 1)):
        found = start(config_of(tmp_path / "b", f"resume={tmp_path}/{path}"))
        assert found.step == step
        assert (tmp_path / "b" / "metrics.jsonl").read_text().count("\n") == step + 1
    assert store_of(config_of(tmp_path / "a")).steps() == [1, 2]
    with pytest.raises(ConfigError, match="no checkpoint there: name auto, never"):
        start(config_of(tmp_path / "b", f"resume={tmp_path}/c"))
    with pytest.raises(CheckpointError, match=r"step_000007: manifest\.json cannot be read"):
        start(config_of(tmp_path / "b", f"resume={tmp_path}/a/checkpoints/step_000007"))


def test_a_store_elsewhere_is_continued_on_a_new_disk(tmp_path):
    url = f"checkpoint.url=memory://{tmp_path}"
    config = config_of(tmp_path / "a", url)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "wandb_id").write_text("1234abcd")
    with store_of(config).writing(4) as writing:
        with files_under(f"{writing.url}/{DRIVER}") as folder:
            for name, text in driver_files(config, recipe_of(config), {"version": 4}).items():
                (folder / name).write_text(text)
            found = [entry.under(DRIVER) for entry in entries(folder)]
        writing.commit(Manifest(step=4, files=found))
    assert start(config_of(tmp_path / "b", url, "resume=auto")).state == {"version": 4}
    assert (tmp_path / "b" / "wandb_id").read_text() == "1234abcd"


REFUSED = {
    "seed=1": "seed: 0 -> 1",
    "learner.learning_rate=1": r"learner\.learning_rate: 0\.0004 -> 1\.0",
    "rollout.max_num_seqs=9": r"rollout\.max_num_seqs: 256 -> 9",
    "objective.c=2": r"objective\.c: 1\.5 -> 2\.0",
    "task.verifier=exact": None,  # what it was
    "prompts_per_step=48": "prompts_per_step: 24 -> 48",
}
FREE = [
    "steps=20",
    "ray.num_cpus=7",
    "rollout.num_cpus=0.5",
    "rollout.timeout_s=5",
    "learner.num_threads=2",
    "eval.every=1",
    "checkpoint.keep=5",
    "tracking.tensorboard=true",
]


def test_a_changed_recipe_is_refused_field_by_field_unless_allowed(tmp_path, caplog):
    checkpoint(config_of(tmp_path), 1)
    for override, said in REFUSED.items():
        if said is None:
            start(config_of(tmp_path, "resume=auto", override))
            continue
        field = override.split("=")[0]
        with pytest.raises(
            ConfigError, match=rf"{said}\. The run .*resume_allow_changes=\[{field}"
        ):
            start(config_of(tmp_path, "resume=auto", override))
        for allowed in (field, "all"):
            allow = f"resume_allow_changes=[{allowed}]"
            assert start(config_of(tmp_path, "resume=auto", override, allow)).resumed
    with caplog.at_level("INFO"):
        assert start(config_of(tmp_path, "resume=auto", *FREE)).resumed
    assert "the recipe changes as allowed: steps: 10 -> 20" in caplog.text
    cosine = ["learner.lr_schedule=cosine", "resume_allow_changes=[learner.lr_schedule]"]
    with pytest.raises(ConfigError, match="steps: 10 -> 20"):
        start(config_of(tmp_path, "resume=auto", "steps=20", *cosine))
    with pytest.raises(ConfigError, match=r"state does not fit: keep the value"):
        start(config_of(tmp_path, "resume=auto", "model.lora.rank=2", "resume_allow_changes=[all]"))
    checkpoint(config_of(tmp_path), 5)
    with pytest.raises(ConfigError, match="is of step 5, and steps=4: raise steps"):
        start(config_of(tmp_path, "resume=auto", "steps=4"))


def test_changes_name_each_field_that_differs(tmp_path):
    before, now = config_of(tmp_path), config_of(tmp_path, "learner.adam_eps=0.000001")
    now.objective = objective_configs["clip"]()
    found = {
        change.field: (change.before, change.now)
        for change in changes(recipe_of(before), recipe_of(now))
    }
    assert found["learner.adam_eps"] == (1e-8, 1e-6)
    assert found["objective.name"] == ("mhpo", "clip")
    assert found["objective.c"][1] == "(absent)"
    assert changes(recipe_of(before), recipe_of(before)) == []


def test_a_finished_run_gets_the_export_it_lacks(tmp_path):
    config = config_of(tmp_path)
    checkpoint(config, 10)
    complete_export(config, store_of(config).place(10))
    assert (tmp_path / "export" / "config.json").read_text() == "{}"
    (tmp_path / "export" / "config.json").write_text("mine")
    complete_export(config, store_of(config).place(10))
    assert (tmp_path / "export" / "config.json").read_text() == "mine"
    assert newest_of(tmp_path).name == "step_000010"
    assert newest_of(tmp_path / "export") is None


def drawn():
    numpy = np.random.random()  # noqa: NPY002 - the global generator is what is meant
    return random.random(), numpy, torch.rand(3).tolist(), random.gauss(0, 1)


def test_random_numbers_go_on_where_they_were():
    before = rng_state()
    random.gauss(0, 1)
    state = json.loads(json.dumps(rng_state()))
    expected = drawn()
    assert drawn() != expected
    set_rng_state(state)
    assert drawn() == expected
    set_rng_state(before)
