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
    except ImportError as error:
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
        return [item for item in self._items("train") if item.question not in held_out]

    def held_out(self, count: int) -> Sequence[Item]:
        """Return the first items of the evaluation split."""
        return self._items("eval")[:count]

    def _items(self, split: str) -> list[Item]:
        rows = list(self._function(split, **self.config.task.parameters))
        return [self._item(split, index, row) for index, row in enumerate(rows)]

    def _item(self, split: str, index: int, row: Mapping[str, Any]) -> Item:
        known = {"question", "answer", "worked_answer", "metadata"}
        if not isinstance(row.get("question"), str) or set(row) - known:
            raise DataError(
                f"task.path={self.config.task.path}: item {index} must be a mapping with a text "
                f"`question` and no fields but {', '.join(sorted(known))}; got {sorted(row)}"
            )
        return Item(id=f"{self.name}/{split}/{index}", **row)
