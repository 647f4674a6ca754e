"""Comparisons of objectives: what the command asks for, what is finished, what the page says."""

import json
import math

import numpy as np
import pytest

from rlpost.config import load
from rlpost.errors import ConfigError, DataError
from rlpost.reporting.comparison import (
    Comparison,
    finished,
    overrides_of,
    read_command,
)
from rlpost.reporting.comparison_page import curves, half_width, write_page


def test_a_command_is_read_into_runs_and_overrides(tmp_path):
    words = ["recipe=quickstart", "objectives=[clip, mhpo:dhp=false:c=2]", "seeds=2", "steps=4"]
    comparison, rest = read_command([*words, f"out={tmp_path}"])
    assert rest == ["recipe=quickstart", "steps=4"]
    assert [(label, seed) for label, seed, _ in comparison.runs()] == [
        ("clip", 0),
        ("mhpo:dhp=false:c=2", 0),
        ("clip", 1),
        ("mhpo:dhp=false:c=2", 1),
    ]
    assert comparison.run_dir("mhpo:dhp=false:c=2", 1) == tmp_path / "mhpo_dhp-false_c-2" / "seed1"
    config = load("quickstart", overrides_of("mhpo:dhp=false:c=2", 1))
    assert (config.objective.dhp, config.objective.c, config.seed) == (False, 2.0, 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["objectives=[clip]"], "out=FOLDER is required"),
        (["out=x"], "must name different objectives"),
        (["objectives=[clip,clip]", "out=x"], "must name different objectives"),
        (["objectives=[ppo2]", "out=x"], "there is no objective ppo2; available: clip"),
        (["objectives=[mhpo:dhp]", "out=x"], "must have the form name:field=value"),
        (["objectives=[clip]", "out=x", "seeds=none"], "seeds=none must be a number from 1"),
        (["objectives=[clip]", "out=x", "seeds=0"], "seeds=0 must be a number from 1"),
    ],
)
def test_a_wrong_command_is_refused(words, said):
    with pytest.raises(ConfigError, match=said):
        read_command(words)


def write_run(folder, accuracies, rewards, plain="config"):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(plain)
    lines = [{"step": 0, "eval/t/pass@1": accuracies[0]}]
    for step, reward in enumerate(rewards, start=1):
        line = {"step": step, "reward/mean": reward, "policy/grad_norm_scaled": 0.5}
        line |= {"policy/entropy": 1.0, "policy/ratio_max": 2.0}
        line |= {"policy/ratio_controlled_frac": 0.25}
        lines.append(line | ({"eval/t/pass@1": accuracies[1]} if step == len(rewards) else {}))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)


def test_a_run_is_finished_when_its_last_step_is_there(tmp_path):
    config = load("quickstart", ["steps=2"])
    write_run(tmp_path / "whole", (0.0, 1.0), (0.1, 0.2))
    write_run(tmp_path / "half", (0.0, 1.0), (0.1,))
    assert finished(tmp_path / "whole", config, "config")
    assert finished(tmp_path / "whole", config, "config\nrun_dir: elsewhere\n")
    assert not finished(tmp_path / "half", config, "config")
    assert not finished(tmp_path / "none", config, "config")
    with pytest.raises(ConfigError, match=r"another configuration \(now steps: 2\)"):
        finished(tmp_path / "whole", config, "steps: 2")


def test_the_interval_is_students():
    values = np.array([[1.0], [2.0], [4.0]])
    deviation = math.sqrt(7 / 3)
    assert half_width(values)[0] == pytest.approx(4.302653 * deviation / math.sqrt(3), rel=1e-6)
    assert math.isnan(half_width(values[:1])[0])


def test_the_page_has_means_intervals_and_pictures(tmp_path):
    comparison = Comparison(labels=("clip", "mhpo:dhp=false"), num_seeds=2, folder=tmp_path)
    for label, seed, run_dir in comparison.runs():
        last = 0.8 if label == "clip" else 0.6
        write_run(run_dir, (0.1, last + 0.1 * seed), (0.3, 0.5))
    found = curves(comparison)
    accuracy = found["clip"]["held-out accuracy"]
    assert accuracy.steps.tolist() == [0, 2]
    assert accuracy.mean.tolist() == pytest.approx([0.1, 0.85])
    page = write_page(comparison, load("quickstart", ["steps=2"]), "rlpost compare ...")
    text = page.read_text()
    assert "| clip | 85.0% ± 63.5% |  | 85.0% | 0.500 ± 0.000 | 0.5 | 1.000 ± 0.000 | 2 |" in text
    # The seeds of both differ by 10 points: paired, nothing is left of that.
    assert "| mhpo:dhp=false | 65.0% ± 63.5% | -20.0% ± 0.0% |" in text
    assert "less that of clip" in text
    assert "rlpost compare ..." in text
    for name in ("curves.svg", "curves.png", "accuracy.svg", "accuracy.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    pictures = [(tmp_path / name).read_bytes() for name in ("curves.svg", "accuracy.svg")]
    write_page(comparison, load("quickstart", ["steps=2"]), "rlpost compare ...")
    again = [(tmp_path / name).read_bytes() for name in ("curves.svg", "accuracy.svg")]
    assert again == pictures
    rows = (tmp_path / "curves.csv").read_text().splitlines()
    assert "mhpo:dhp=false,1,2,0.7,0.5,0.5,1,2,0.25" in rows
    assert "clip,0,1,,0.3,0.5,1,2,0.25" in rows


def test_seeds_that_recorded_different_steps_are_refused(tmp_path):
    comparison = Comparison(labels=("clip",), num_seeds=2, folder=tmp_path)
    write_run(comparison.run_dir("clip", 0), (0.1, 0.2), (0.3, 0.5))
    write_run(comparison.run_dir("clip", 1), (0.1, 0.2), (0.3,))
    with pytest.raises(DataError, match="at different steps"):
        curves(comparison)


def test_runs_without_evaluation_are_refused(tmp_path):
    comparison = Comparison(labels=("clip",), num_seeds=1, folder=tmp_path)
    write_run(comparison.run_dir("clip", 0), (0.1, 0.2), (0.3,))
    metrics = comparison.run_dir("clip", 0) / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("eval/", "other/"))
    with pytest.raises(DataError, match=r"no step recorded eval/; .* eval.every > 0"):
        curves(comparison)
