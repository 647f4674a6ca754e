"""Tasks from data sets: JSONL, JSON or Parquet files, or a hub name, by column names."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlpost.errors import ConfigError, DataError
from rlpost.schema import DataConfig, RunConfig
from rlpost.tasks.interface import Item

_ENDINGS = (".jsonl", ".json", ".parquet")


class DatasetSource:
    """Items of the two splits of a data set; a training question that is held out is left out."""

    def __init__(self, config: RunConfig) -> None:
        self.data = config.data
        self.num_eval = config.eval.num_prompts
        self.name = config.task.name or Path(config.data.path or "").stem

    def training(self) -> Sequence[Item]:
        """Return the training split, without questions of the evaluation split."""
        held_out = {item.question for item in self.held_out(self.num_eval)}
        items = self._items(self.data.split)
        kept = [item for item in items if item.question not in held_out]
        if not kept:
            raise DataError(
                f"data.split={self.data.split}: every question is held out for evaluation; "
                "use different data.split and data.eval_split"
            )
        return kept[: self.data.num_train]

    def held_out(self, count: int) -> Sequence[Item]:
        """Return the first items of the evaluation split."""
        return self._items(self.data.eval_split)[:count]

    def _items(self, split: str) -> list[Item]:
        rows = read_rows(self.data, split)
        if not rows:
            raise DataError(f"data.path={self.data.path}: split {split} is empty")
        check_columns(self.data, rows[0])
        return [self._item(split, index, row) for index, row in enumerate(rows)]

    def _item(self, split: str, index: int, row: Mapping[str, Any]) -> Item:
        data = self.data
        worked = row[data.worked_answer_column] if data.worked_answer_column else None
        return Item(
            id=f"{self.name}/{split}/{index}",
            question=str(row[data.question_column]),
            answer=self._answer(str(row[data.answer_column]), split, index),
            worked_answer=None if worked is None else str(worked),
        )

    def _answer(self, text: str, split: str, index: int) -> str:
        if self.data.answer_pattern is None:
            return text
        matches = list(re.finditer(self.data.answer_pattern, text))
        if not matches:
            raise DataError(
                f"data.answer_pattern={self.data.answer_pattern!r} matches nothing in row {index} "
                f"of split {split}: {text[-80:]!r}"
            )
        return matches[-1].group(1).strip()


def check_columns(data: DataConfig, row: Mapping[str, Any]) -> None:
    """Raise ConfigError if a column that the recipe names is not there."""
    for field in ("question_column", "answer_column", "worked_answer_column"):
        column = getattr(data, field)
        if column is not None and column not in row:
            raise ConfigError(
                f"data.{field}={column}: no such column in {data.path}; it has {', '.join(row)}"
            )


def split_file(data: DataConfig, split: str) -> Path | None:
    """Return the file of a split, or None for a hub name.

    Raises:
        ConfigError: `data.path` is missing, or holds no file for the split.
    """
    if data.path is None:
        raise ConfigError("data.path is not set: give a file, a folder of files or a hub name")
    path = Path(data.path).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        candidates = [path / f"{split}{ending}" for ending in _ENDINGS]
        found = [candidate for candidate in candidates if candidate.is_file()]
        if found:
            return found[0]
        names = ", ".join(sorted(p.name for p in path.iterdir())) or "nothing"
        raise ConfigError(
            f"data.path={data.path}: no file for split {split} "
            f"({', '.join(c.name for c in candidates)}); the folder has {names}"
        )
    if (
        path.suffix in _ENDINGS
        or data.path.startswith((".", "/", "~"))
        or data.path.count("/") != 1
    ):
        raise ConfigError(f"data.path={data.path}: no such file or folder")
    return None


def read_rows(data: DataConfig, split: str, limit: int | None = None) -> list[Mapping[str, Any]]:
    """Return the rows of a split, or its first ones."""
    path = split_file(data, split)
    if path is None:
        return _hub_rows(data, split)
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_table(path).to_pylist()[:limit]
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))[:limit]
    rows: list[Mapping[str, Any]] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if limit is not None and len(rows) >= limit:
                break
            if line.strip():
                rows.append(_json_row(path, number, line))
    return rows


def _json_row(path: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number}: must be a JSON object, got {line[:60]!r}")
    return row


def _hub_rows(data: DataConfig, split: str) -> list[Mapping[str, Any]]:
    try:
        import datasets  # pyright: ignore[reportMissingImports]  # the optional extra `hub`
    except ImportError as error:
        raise ConfigError(
            f"data.path={data.path} is no file or folder here, and reading it from the hub needs "
            "the package datasets: pip install 'rlpost[hub]'"
        ) from error
    return list(datasets.load_dataset(data.path, split=split))
