"""The page on a run: what it shows of a run directory, and what it refuses."""

import json
from html.parser import HTMLParser

import pytest
import yaml

from rlpost.cli import main
from rlpost.errors import ConfigError, DataError
from rlpost.reporting.record import Record, differences, records
from rlpost.reporting.report import page, report
from rlpost.reporting.rollouts_log import write_rollouts
from rlpost.types import Group, Prompt, Trajectory

VOID = {"meta", "br"}


def line(step, **values):
    times = {"time/rollout_s": 0.5, "time/learn_s": 1.5, "time/step_s": 2.0} if step else {}
    return {"step": step, "unix_s": 1000.0 + 36.0 * step} | times | values


def write_run(folder, *, steps=4, asked=4, seed=0, learning_rate=1e-4, response="right"):
    folder.mkdir(parents=True)
    lines = [line(0, **{"eval/suite/pass@1": 0.1})]
    for step in range(1, steps + 1):
        values = {"reward/mean": 0.1 * step, "policy/entropy": 1.0 / step, "staleness/max": 0.0}
        lines.append(line(step, **values, **{"tokens/trained": 100.0, "faults/lost": 1.0}))
    lines[-1]["eval/suite/pass@1"] = 0.75
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    config = {
        "run_dir": str(folder),
        "seed": seed,
        "steps": asked,
        "prompts_per_step": 2,
        "group_size": 8,
        "task": {"name": "sums"},
        "objective": {"name": "mhpo"},
        "learner": {"learning_rate": learning_rate},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    prompt = Prompt(id="a", text="1 < 2?", token_ids=(5, 6), answer="yes")
    trajectories = [
        Trajectory(
            prompt_ids=(5, 6),
            token_ids=(7,),
            loss_mask=(True,),
            behavior_logprobs=(-0.5,),
            weight_versions=(0,),
            text=text,
            finish_reason="stop",
            reward=reward,
        )
        for text, reward in ((response, 1.0), ("maybe", 0.5), ("<script>no()</script>", 0.0))
    ]
    for step in range(1, steps + 1):
        write_rollouts(folder / "rollouts", step, [Group(prompt=prompt, trajectories=trajectories)])
    return folder


class Reader(HTMLParser):
    """Collects a page's visible text and tags, and fails where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.texts, self.links = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open and data.strip():
            self.texts.append(data.strip())


def cells(reader, name):
    """Return the text that follows a cell's."""
    return reader.texts[reader.texts.index(name) + 1]


def test_the_page_of_a_run_shows_its_numbers_and_responses(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "incidents.jsonl").write_text(
        '{"unix_s": 1090.0, "event": "lost", "actor": "rollout-0", "cause": "killed & gone"}\n'
        '{"unix_s": 1102.0, "event": "back", "actor": "rollout-0", "after_s": 12.0}\n'
        '{"unix_s": 11'  # a line that was broken off
    )
    assert report([str(run)]) == run / "report.html"
    reader = Reader((run / "report.html").read_text())
    assert cells(reader, "task, objective, seed") == "sums, mhpo, 0"
    assert cells(reader, "steps") == "4 of 4"
    assert cells(reader, "held-out accuracy, first, best, last") == "10.0%, 75.0%, 75.0%"
    assert cells(reader, "reward, first and last step") == "0.100, 0.400"
    assert cells(reader, "samples, tokens trained") == "64, 400"
    assert cells(reader, "wall time, median step") == "2.4 min, 2.00 s"
    assert cells(reader, "actors lost") == "1"
    assert cells(reader, "killed & gone") == "1.7"
    shown = [text for text in reader.texts if text in ("right", "maybe", "<script>no()</script>")]
    assert shown == ["right", "maybe", "<script>no()</script>"] * 3  # of steps 1, 3 (or 2) and 4
    assert "script" not in reader.seen
    assert not [link for link in reader.links if not link.startswith("#")]
    # What was never recorded, or never happened, has no picture.
    metrics = [text for text in reader.texts if "/" in text and " " not in text]
    assert "policy/entropy" in metrics
    assert "staleness/max" not in metrics
    assert "policy/kl_ref" not in metrics


def test_runs_beside_each_other_show_what_differs(tmp_path):
    first = write_run(tmp_path / "a" / "run")
    second = write_run(tmp_path / "b" / "run", steps=2, seed=1, learning_rate=2e-4)
    shown = records([first, second])
    assert [one.name for one in shown] == ["a/run", "b/run"]
    assert differences(shown) == {"seed": [0, 1], "learner.learning_rate": [1e-4, 2e-4]}
    assert "2 of 4: unfinished" in Reader(page(shown)).texts
    with pytest.raises(ConfigError, match=r"page on 2 runs .* out=FILE"):
        report([str(first), str(second)])
    out = tmp_path / "both.html"
    assert main(["report", str(first), str(second), f"out={out}"]) == 0
    assert out.is_file()


def test_what_is_no_run_is_refused(tmp_path, capsys):
    with pytest.raises(ConfigError, match="needs a run directory"):
        report([])
    with pytest.raises(DataError, match=r"no metrics\.jsonl"):
        report([str(tmp_path)])
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(DataError, match="has recorded no step yet"):
        report([str(tmp_path)])
    run = write_run(tmp_path / "run")
    with pytest.raises(DataError, match="named twice"):
        report([str(run), str(run), "out=x.html"])
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is no run directory" in capsys.readouterr().err


def test_phases_come_with_the_longest_first(tmp_path):
    record = Record(write_run(tmp_path / "run"), "run")
    assert list(record.phases().items()) == [("learn", [1.5] * 4), ("rollout", [0.5] * 4)]
