"""Prompts, their data, and what verifies the responses."""

import re
from collections.abc import Iterator

from rlpost.schema import RunConfig


def problems(config: RunConfig) -> Iterator[str]:
    """Yield why a task cannot be built.

    Raises:
        ConfigError: its data is not there, or lacks a column.
        DataError: a file of it cannot be read.
    """
    if config.task.kind not in ("reasoning_gym", "dataset", "custom"):
        yield (
            f"task.kind={config.task.kind}: no such kind; available: reasoning_gym, dataset, custom"
        )
    verifier = config.task.verifier
    if verifier not in ("reasoning_gym", "math", "exact") and ":" not in verifier:
        yield (
            f"task.verifier={verifier}: no such verifier; available: reasoning_gym, math, exact, "
            "or your own as package.module:function"
        )
    if not re.search(r"\{\w+\}", config.task.prompt_template):
        yield (
            f"task.prompt_template={config.task.prompt_template!r} must contain {{question}}, or "
            "another field of the task's items"
        )
    if config.task.system_prompt is not None and not config.task.chat_template:
        yield (
            "task.system_prompt has no place without task.chat_template=true: set that, or put the "
            "text into task.prompt_template"
        )
    if config.task.kind == "dataset":
        yield from _dataset(config)


def _dataset(config: RunConfig) -> Iterator[str]:
    from rlpost.tasks.files import check_columns, check_pattern, read_rows, split_file

    check_pattern(config.data)
    for split in (config.data.split, config.data.eval_split):
        if split_file(config.data, split) is not None:
            rows = read_rows(config.data, split, limit=1)
            if not rows:
                yield f"data.path={config.data.path}: split {split} is empty"
            check_columns(config.data, rows[0])
    if config.warmstart.steps and config.data.worked_answer_column is None:
        yield (
            f"warmstart.steps={config.warmstart.steps} needs data.worked_answer_column, which "
            "is null: name the column, or set warmstart.steps=0"
        )
