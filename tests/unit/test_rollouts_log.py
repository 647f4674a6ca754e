import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rlpost.reporting import rollouts_log
from rlpost.reporting.rollouts_log import SCHEMA, write_rollouts
from rlpost.types import Group, Prompt, Trajectory


def group(prompt_id: str, num: int) -> Group:
    prompt = Prompt(id=prompt_id, text="1+2=", token_ids=(5, 6), answer="3")
    trajectory = Trajectory(
        prompt_ids=(5, 6),
        token_ids=(7, 8),
        loss_mask=(True, False),
        behavior_logprobs=(-0.5, -0.25),
        weight_versions=(3, 4),
        text="3 ",
        finish_reason="stop",
        worker="rollout-0",
        reward=1.0,
        reward_parts={"format": 0.5, "right": 1.0},
    )
    return Group(
        prompt=prompt,
        trajectories=(trajectory,) * num,
        asked_s=1.0,
        sampled_s=2.5,
        scored_s=3.0,
    )


def test_each_trajectory_is_one_row(tmp_path: Path) -> None:
    path = write_rollouts(tmp_path / "rollouts", 7, [group("a", 2), group("b", 1)])
    assert path == tmp_path / "rollouts" / "step_000007.parquet"
    table = pq.read_table(path)
    assert table.schema.equals(SCHEMA)
    rows = table.to_pylist()
    assert [(row["group"], row["prompt_id"]) for row in rows] == [(0, "a"), (0, "a"), (1, "b")]
    assert rows[2] == {
        "step": 7,
        "group": 1,
        "prompt_id": "b",
        "prompt": "1+2=",
        "answer": "3",
        "response": "3 ",
        "reward": 1.0,
        "reward_parts": [("format", 0.5), ("right", 1.0)],
        "dropped": "",
        "finish_reason": "stop",
        "worker": "rollout-0",
        "asked_s": 1.0,
        "sampled_s": 2.5,
        "scored_s": 3.0,
        "prompt_ids": [5, 6],
        "token_ids": [7, 8],
        "loss_mask": [True, False],
        "behavior_logprobs": [-0.5, -0.25],
        "weight_versions": [3, 4],
    }


def test_a_step_without_rollouts_has_a_readable_file(tmp_path: Path) -> None:
    assert pq.read_table(write_rollouts(tmp_path, 1, [])).num_rows == 0


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"PAR1")
        raise OSError("disk full")

    monkeypatch.setattr(rollouts_log.pq, "write_table", half)
    with pytest.raises(OSError, match="disk full"):
        write_rollouts(tmp_path, 1, [group("a", 1)])
    assert os.listdir(tmp_path) == []
