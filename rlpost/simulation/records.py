"""What a run's own records say of its speed: metrics.jsonl and rollouts/*.parquet."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq

from rlpost.errors import DataError
from rlpost.simulation.rates import GroupShape

Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedGroup:
    """A group of a run: its shape, its worker, and its times on the driver's clock."""

    step: int
    worker: str
    shape: GroupShape
    num_trained: int
    asked_s: float
    sampled_s: float
    scored_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """A run's steps, and the groups of its rollout files; the first `num_skipped` are warm-up."""

    lines: Sequence[Line]
    groups: Sequence[RecordedGroup]
    num_skipped: int

    @property
    def steady(self) -> list[Line]:
        """The metrics of steps after the warm-up."""
        return [line for line in self.lines if line["step"] > self.num_skipped]

    @property
    def steady_groups(self) -> list[RecordedGroup]:
        """The groups of those steps."""
        return [group for group in self.groups if group.step > self.num_skipped]

    @property
    def timed_groups(self) -> list[RecordedGroup]:
        """The groups whose times are known: those restored from a checkpoint have none."""
        return [group for group in self.groups if group.scored_s]

    def median(self, name: str) -> float:
        """Return the median of a metric after the warm-up, 0 where it is not recorded."""
        values = [line[name] for line in self.steady if line.get(name) is not None]
        return median(values) if values else 0.0


def read_records(run_dir: Path, num_skipped: int) -> Records:
    """Read a run directory.

    Raises:
        DataError: it has too few steps, or not what calibration needs.
    """
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        raise DataError(f"from={run_dir}: no run directory: metrics.jsonl is not in it")
    with path.open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file if line.endswith("\n")]
    files = sorted((run_dir / "rollouts").glob("step_*.parquet"))
    groups = [group for file in files for group in _groups(file)]
    records = Records(lines=lines, groups=groups, num_skipped=num_skipped)
    if not records.steady:
        last = max((line["step"] for line in lines), default=0)
        raise DataError(
            f"from={run_dir}: its last step is {last}, and the first {num_skipped} count as "
            "warm-up (cluster.warmup_steps): none is left to measure"
        )
    missing = {line["step"] for line in records.steady} - {g.step for g in groups}
    if missing:
        raise DataError(
            f"from={run_dir}: no rollouts of step {min(missing)}: calibration needs those of each "
            "step, as tracking.rollouts_every=1 writes them"
        )
    if any("clock/published_s" not in line for line in lines) or not records.timed_groups:
        raise DataError(
            f"from={run_dir}: it does not say when weights were published and groups sampled "
            "(clock/published_s, asked_s): record it again with this version of rlpost"
        )
    published = [line["clock/published_s"] for line in lines]
    if published != sorted(published):
        raise DataError(
            f"from={run_dir}: its clock was set back, as by a resume on another machine: use a run "
            "that was not interrupted"
        )
    return records


def _groups(path: Path) -> list[RecordedGroup]:
    columns = ["step", "group", "worker", "reward", "dropped", "prompt_ids", "token_ids"]
    known = set(pq.read_schema(path).names)
    times = [name for name in ("asked_s", "sampled_s", "scored_s") if name in known]
    rows: dict[int, list[dict[str, Any]]] = {}
    for row in pq.read_table(path, columns=columns + times).to_pylist():
        rows.setdefault(row["group"], []).append(row)
    return [
        RecordedGroup(
            step=members[0]["step"],
            worker=members[0]["worker"],
            shape=GroupShape(
                prompt_tokens=len(members[0]["prompt_ids"]),
                lengths=tuple(max(1, len(row["token_ids"])) for row in members),
                rewards=tuple(row["reward"] or 0.0 for row in members),
            ),
            num_trained=sum(not row["dropped"] for row in members),
            **{name: members[0].get(name, 0.0) for name in ("asked_s", "sampled_s", "scored_s")},
        )
        for members in rows.values()
    ]
