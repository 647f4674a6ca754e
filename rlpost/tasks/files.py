"""Reading data sets: JSONL, JSON or Parquet files, a folder of one file a split, or a hub name."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlpost.errors import ConfigError, DataError
from rlpost.schema import DataConfig

_ENDINGS = (".jsonl", ".json", ".parquet")


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
