"""A user's own task: a function that returns items."""

from collections.abc import Mapping, Sequence
from typing import Any

from rlpost.errors import DataError
from rlpost.schema import RunConfig
from rlpost.tasks.interface import Item
from rlpost.user_code import resolve


class CustomSource:
    """Calls the user's function with the split, "train" or "eval", and the task's parameters.

    It returns mappings with `question` and, as the verifier needs, `answer`, `worked_answer`,
    `metadata`.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.name = config.task.name or "custom"
        self._function = resolve("task.path", config.task.path)

    def training(self) -> Sequence[Item]:
        """Return the training items, without held-out questions."""
        held_out = {item.question for item in self.held_out(self.config.eval.num_prompts)}
        kept = [item for item in self._items("train") if item.question not in held_out]
        if not kept:
            raise DataError(
                f"task.path={self.config.task.path}: every question of split 'train' is held out "
                "for evaluation; return other questions for split 'eval'"
            )
        return kept

    def held_out(self, count: int) -> Sequence[Item]:
        """Return the first items of the evaluation split."""
        return self._items("eval")[:count]

    def _items(self, split: str) -> list[Item]:
        path = self.config.task.path
        try:
            rows = list(self._function(split, **self.config.task.parameters))
        except Exception as error:
            raise DataError(
                f"task.path={path}: called with split {split!r} and task.parameters, it raised "
                f"{type(error).__name__}: {error}"
            ) from error
        if not rows:
            raise DataError(f"task.path={path}: no items for split {split!r}")
        return [self._item(split, index, row) for index, row in enumerate(rows)]

    def _item(self, split: str, index: int, row: Any) -> Item:
        known = {"question", "answer", "worked_answer", "metadata"}
        good = (
            isinstance(row, Mapping)
            and not set(row) - known
            and isinstance(row.get("question"), str)
            and all(isinstance(row.get(key), str | None) for key in ("answer", "worked_answer"))
        )
        if not good:
            raise DataError(
                f"task.path={self.config.task.path}: item {index} must be a mapping with a text "
                "`question`, where wanted a text `answer`, a text `worked_answer` and `metadata`, "
                f"and nothing else; got {str(row)[:120]}"
            )
        return Item(id=f"{self.name}/{split}/{index}", **row)
