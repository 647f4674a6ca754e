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
        check_pattern(self.data)
        return [self._item(split, index, row) for index, row in enumerate(rows)]

    def _item(self, split: str, index: int, row: Mapping[str, Any]) -> Item:
        data = self.data
        question = self._text("question_column", split, index, row)
        answer = self._text("answer_column", split, index, row)
        worked = None
        if data.worked_answer_column is not None:
            worked = self._text("worked_answer_column", split, index, row)
        used = {data.question_column, data.answer_column, data.worked_answer_column}
        return Item(
            id=f"{self.name}/{split}/{index}",
            question=question,
            answer=self._answer(answer, split, index),
            worked_answer=worked,
            metadata={column: value for column, value in row.items() if column not in used},
        )

    def _text(self, field: str, split: str, index: int, row: Mapping[str, Any]) -> str:
        column = getattr(self.data, field)
        value = row.get(column)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, str | int | float):
            return str(value)
        raise DataError(
            f"data.{field}={column}: row {index} of split {split} must have a text or a number "
            f"there, got {str(value)[:60]!r}"
        )

    def _answer(self, text: str, split: str, index: int) -> str:
        if self.data.answer_pattern is None:
            return text
        matches = list(re.finditer(self.data.answer_pattern, text))
        if not matches or matches[-1].group(1) is None:
            raise DataError(
                f"data.answer_pattern={self.data.answer_pattern!r} matches nothing in row {index} "
                f"of split {split}: {text[-80:]!r}"
            )
        return matches[-1].group(1).strip()


def check_pattern(data: DataConfig) -> None:
    """Raise ConfigError if `answer_pattern` is no regular expression with a group."""
    if data.answer_pattern is None:
        return
    try:
        num_groups = re.compile(data.answer_pattern).groups
    except re.error as error:
        raise ConfigError(
            f"data.answer_pattern={data.answer_pattern!r}: no regular expression: {error}"
        ) from error
    if not num_groups:
        raise ConfigError(
            f"data.answer_pattern={data.answer_pattern!r} must have a group (in parentheses), "
            "which is the answer"
        )


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
    try:
        if path.suffix == ".parquet":
            return _parquet_rows(path)[:limit]
        if path.suffix == ".json":
            return _json_rows(path)[:limit]
        return _jsonl_rows(path, limit)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error}") from error


def _parquet_rows(path: Path) -> list[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).to_pylist()
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file: {error}") from error


def _json_rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: must be a JSON list of objects")
    return rows


def _jsonl_rows(path: Path, limit: int | None) -> list[Mapping[str, Any]]:
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
        import datasets  # pyrefly: ignore[missing-import]  # the optional extra `hub`
    except ImportError as error:
        raise ConfigError(
            f"data.path={data.path} is no file or folder here, and reading it from the hub needs "
            "the package datasets: pip install 'rlpost[hub]'"
        ) from error
    return list(datasets.load_dataset(data.path, split=split))
