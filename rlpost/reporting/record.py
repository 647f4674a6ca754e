"""What a run directory tells of its run."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from rlpost.errors import DataError
from rlpost.reporting.comparison import read_metrics

ACCURACY = "pass@1"
_COLUMNS = ["prompt", "answer", "response", "reward", "finish_reason", "dropped"]


@dataclass(frozen=True)
class Record:
    """A run, read from its directory alone; `name` is unique among those shown beside it."""

    folder: Path
    name: str

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """What `metrics.jsonl` holds, a mapping a step.

        Raises:
            DataError: this is no run directory, or nothing has been recorded in it yet.
        """
        if not (self.folder / "metrics.jsonl").is_file():
            raise DataError(
                f"{self.folder} is no run directory: it has no metrics.jsonl. Name the run_dir of "
                "a training"
            )
        lines = read_metrics(self.folder)
        if not lines:
            raise DataError(f"{self.folder} has recorded no step yet: its metrics.jsonl is empty")
        return lines

    @cached_property
    def config(self) -> dict[str, Any]:
        """What `config.yaml` says, each field by its whole name."""
        path = self.folder / "config.yaml"
        if not path.is_file():
            raise DataError(f"{self.folder} is no run directory: it has no config.yaml")
        return dict(_flat(yaml.safe_load(path.read_text(encoding="utf-8"))))

    @cached_property
    def incidents(self) -> list[dict[str, Any]]:
        """Which actors were lost and came back."""
        path = self.folder / "incidents.jsonl"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Return the steps at which a metric was recorded, and its values.

        `pass@1` stands for the accuracy on whichever held-out suite there is.
        """
        key = name
        if name == ACCURACY:
            key = next((k for line in self.lines for k in line if k.endswith("/pass@1")), name)
        found = [(line["step"], line[key]) for line in self.lines if line.get(key) is not None]
        return [step for step, _ in found], [value for _, value in found]

    def phases(self) -> dict[str, list[float]]:
        """Return the seconds of each step's phases, from step 1 on, the longest phase first."""
        steps = [line for line in self.lines if line["step"] > 0]
        names = {k for line in steps for k in line if k.startswith("time/") and k != "time/step_s"}
        table = {
            name.removeprefix("time/").removesuffix("_s"): [line.get(name, 0.0) for line in steps]
            for name in names
        }
        return dict(sorted(table.items(), key=lambda item: -sum(item[1])))

    def rollouts(self, num_steps: int = 3) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Yield the responses of some recorded steps, spread from the first to the last."""
        import pyarrow.parquet as pq

        paths = sorted((self.folder / "rollouts").glob("step_*.parquet"))
        last = len(paths) - 1
        chosen = {round(last * index / max(1, num_steps - 1)) for index in range(num_steps)}
        for index in sorted(chosen) if paths else []:
            rows = pq.read_table(paths[index], columns=_COLUMNS).to_pylist()
            yield int(paths[index].stem.removeprefix("step_")), rows

    def total(self, name: str) -> float:
        """Return the sum of a metric over all steps."""
        return sum(self.series(name)[1])

    def median(self, name: str) -> float | None:
        """Return the median of a metric over the steps that recorded it, from step 1 on."""
        values = [value for step, value in zip(*self.series(name), strict=True) if step > 0]
        return statistics.median(values) if values else None


def records(folders: Sequence[Path]) -> list[Record]:
    """Return the records of some runs, named by as much of their paths as tells them apart.

    Raises:
        DataError: one is no run directory, or is named twice.
    """
    whole = [folder.resolve() for folder in folders]
    if len(set(whole)) < len(whole):
        raise DataError("a run directory is named twice: name each once")
    depth = 1
    while len({folder.parts[-depth:] for folder in whole}) < len(whole):
        depth += 1
    found = [
        Record(folder, "/".join(whole_one.parts[-depth:]))
        for folder, whole_one in zip(folders, whole, strict=True)
    ]
    for record in found:
        _ = record.lines, record.config  # a mistake is told before anything is drawn
    return found


def differences(shown: Sequence[Record]) -> dict[str, list[Any]]:
    """Return the fields in which runs differ, each with every run's value."""
    fields = dict.fromkeys(field for record in shown for field in record.config)
    table = {field: [record.config.get(field) for record in shown] for field in fields}
    return {
        field: values
        for field, values in table.items()
        if field != "run_dir" and any(value != values[0] for value in values)
    }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
