import json
import logging
import math
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from rlpost.errors import ConfigError
from rlpost.reporting import tracking
from rlpost.reporting.tracking import CompositeTracker, JsonlTracker, build_tracker
from rlpost.schema import TrackingConfig


class ListTracker:
    def __init__(self, *, dies_at: int | None = None) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.dies_at = dies_at
        self.closed = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self.dies_at is not None and step >= self.dies_at:
            raise ConnectionError("server gone")
        self.lines.append((step, dict(values)))

    def close(self) -> None:
        self.closed = True


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_jsonl_is_one_object_a_step_and_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    tracker = JsonlTracker(path)
    tracker.log(1, {"reward/mean": 0.5})
    tracker.log(2, {"reward/mean": 0.75})
    lines = read(path)
    tracker.close()
    assert [(line["step"], line["reward/mean"]) for line in lines] == [(1, 0.5), (2, 0.75)]


def test_jsonl_names_what_is_not_finite(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    with caplog.at_level(logging.WARNING):
        tracker.log(1, {"policy/loss": math.nan, "policy/grad_norm": math.inf, "a": 1.0})
        tracker.log(2, {"policy/loss": math.nan})
    tracker.close()
    first, second = read(tmp_path / "metrics.jsonl")
    assert first["policy/loss"] is None
    assert first["nonfinite"] == {"policy/loss": "nan", "policy/grad_norm": "inf"}
    assert second["nonfinite"] == {"policy/loss": "nan"}
    assert [record.getMessage() for record in caplog.records] == [
        "step 1: policy/grad_norm is inf",
        "step 1: policy/loss is nan",
    ]


def test_jsonl_of_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    for step in range(5):
        tracker.log(step, {"x": float(step)})
    tracker.close()
    with path.open("a") as file:
        file.write('{"step": 5, "x"')
    resumed = JsonlTracker(path, after_step=2)
    resumed.log(3, {"x": 30.0})
    resumed.close()
    assert [(line["step"], line["x"]) for line in read(path)] == [(0, 0), (1, 1), (2, 2), (3, 30)]


def test_a_dead_tracker_never_stops_a_run(caplog: pytest.LogCaptureFixture) -> None:
    alive, dead = ListTracker(), ListTracker(dies_at=2)
    tracker = CompositeTracker({"dead": dead, "alive": alive})
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3, 4):
            tracker.log(step, {"x": 1.0})
    tracker.close()
    assert [step for step, _ in alive.lines] == [1, 2, 3, 4]
    assert [values.get("tracking/dead_failures") for _, values in alive.lines] == [None, None, 1, 2]
    assert tracker.failures == {"dead": 3, "alive": 0}
    assert len(caplog.records) == 1
    assert "ConnectionError: server gone" in caplog.records[0].getMessage()
    assert alive.closed
    assert dead.closed


def test_metrics_jsonl_is_always_written(tmp_path: Path) -> None:
    tracker = build_tracker(TrackingConfig(), tmp_path, {})
    tracker.log(1, {"x": 1.0})
    tracker.close()
    assert list(tracker.trackers) == ["jsonl"]
    assert read(tmp_path / "metrics.jsonl")[0]["x"] == 1.0


def test_tensorboard_shows_each_step_of_a_resumed_run_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TrackingConfig(tensorboard=True)
    for after_step, steps in ((None, (0, 1, 2, 3)), (1, (2, 3)), (-1, (0, 1))):
        tracker = build_tracker(config, tmp_path, {}, after_step=after_step)
        for step in steps:
            tracker.log(step, {"x": float(step)})
        tracker.close()
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        assert [event.step for event in events.Scalars("x")] == list(range(max(steps) + 1))


def test_tensorboard_keeps_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = build_tracker(TrackingConfig(tensorboard=True), tmp_path, {})
    tracker.log(1, {"reward/mean": 0.25})
    tracker.log(2, {"reward/mean": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tracker.close()
    assert [(e.step, e.value) for e in events.Scalars("reward/mean")] == [(1, 0.25), (2, 0.5)]
    assert tracker.failures == {"tensorboard": 0, "jsonl": 0}


WANDB_RUN = """
import sys
from pathlib import Path
from rlpost.schema import TrackingConfig, WandbConfig
from rlpost.reporting.tracking import build_tracker

config = TrackingConfig(wandb=WandbConfig(enabled=True))
for after_step, steps in ((None, (0, 1, 2)), (1, (2, 3))):
    tracker = build_tracker(config, Path(sys.argv[1]), {"seed": 1}, after_step=after_step)
    for step in steps:
        tracker.log(step, {"reward/mean": step / 4})
    tracker.close()
    assert tracker.failures == {"jsonl": 0, "wandb": 0}, tracker.failures
"""


def wandb_values(data: bytes) -> list[bytes]:
    """Return the values of reward/mean in a file of W&B's, each behind its length in one byte."""
    marks = re.finditer(rb"reward/mean\x82\x01(.)", data, re.DOTALL)
    return [data[mark.end() : mark.end() + mark[1][0]] for mark in marks]


def test_wandb_works_offline_without_an_account_and_has_each_step_of_a_resumed_run_once(
    tmp_path: Path,
) -> None:
    pytest.importorskip("wandb")
    subprocess.run(
        [sys.executable, "-c", WANDB_RUN, str(tmp_path)],
        check=True,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        timeout=120,
    )
    first, second = sorted(
        tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime
    )
    assert first.name == second.name  # one run in two parts
    assert set(wandb_values(first.read_bytes())) == {b"0", b"0.25", b"0.5"}
    assert set(wandb_values(second.read_bytes())) == {b"0.75"}


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(
        ConfigError, match=r"tracking\.tensorboard=true needs the package tensorboard"
    ) as caught:
        build_tracker(TrackingConfig(tensorboard=True), tmp_path, {})
    assert "pip install 'rlpost[tensorboard]'" in str(caught.value)


def test_wandb_that_cannot_start_leaves_the_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(tracking, "WandbTracker", refuse)
    config = TrackingConfig()
    config.wandb.enabled = True
    tracker = build_tracker(config, tmp_path, {})
    tracker.close()
    assert list(tracker.trackers) == ["jsonl"]
    assert "no route" in caplog.text
