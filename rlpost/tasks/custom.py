"""A user's own task: a function that returns items."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from rlpost.errors import ConfigError, DataError
from rlpost.schema import RunConfig
from rlpost.tasks.interface import Item


def resolve(field: str, path: str | None) -> Callable[..., Any]:
    """Return the function that `package.module:function` names.

    Raises:
        ConfigError: the form is wrong, or there is no such module or function.
    """
    module_name, _, function_name = (path or "").partition(":")
    if not module_name or not function_name:
        raise ConfigError(f"{field} must have the form package.module:function, got {path!r}")
    try:
        module = import_module(module_name)
    except Exception as error:  # a user's module may raise anything on import
        raise ConfigError(f"{field}={path}: cannot import {module_name}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"{field}={path}: {module_name} has no function {function_name}")
    return function


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
