"""Tasks from data sets: JSONL, JSON or Parquet files, or a hub name, by column names."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlpost.errors import DataError
from rlpost.schema import RunConfig
from rlpost.tasks.files import check_columns, check_pattern, read_rows
from rlpost.tasks.interface import Item


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
