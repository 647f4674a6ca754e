"""What a task is: items with a question and an answer, rendered as prompts."""

import logging
import random
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rlpost.errors import ConfigError, DataError
from rlpost.schema import RunConfig
from rlpost.types import Prompt

_log = logging.getLogger(__name__)

_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question of a task before it is rendered; `metadata` must be JSON."""

    id: str
    question: str
    answer: str | None = None
    worked_answer: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Where a task's items come from."""

    name: str

    def training(self) -> Sequence[Item]:
        """Return the training items; held-out questions are not among them."""
        ...

    def held_out(self, count: int) -> Sequence[Item]:
        """Return up to `count` items that training never shows."""
        ...


class Renderer:
    """Turns items into prompts: through a template, or the tokenizer's chat template."""

    def __init__(self, config: RunConfig, tokenizer: Any) -> None:
        self.task = config.task
        self.max_prompt_tokens = config.sampling.max_prompt_tokens
        self.tokenizer = tokenizer
        self.too_long = 0
        if self.task.chat_template and not tokenizer.chat_template:
            raise ConfigError(
                "task.chat_template=true, but the tokenizer has no chat template: set it to false"
            )

    def prompt(self, item: Item) -> Prompt | None:
        """Return the item's prompt, or None, counted in `too_long`, if it exceeds the limit."""
        text = self.text(item)
        token_ids = self._token_ids(text)
        if len(token_ids) > self.max_prompt_tokens:
            self.too_long += 1
            if self.too_long == 1:
                _log.warning(
                    "prompt %s has %d tokens, more than sampling.max_prompt_tokens=%d: it and its "
                    "like are left out",
                    item.id,
                    len(token_ids),
                    self.max_prompt_tokens,
                )
            return None
        return Prompt(
            id=item.id,
            text=text,
            token_ids=tuple(token_ids),
            answer=item.answer,
            worked_answer=item.worked_answer,
            metadata=item.metadata,
        )

    def text(self, item: Item) -> str:
        """Return the template with the item's question and metadata; other braces stay."""
        fields = {**item.metadata, "question": item.question}
        used: list[str] = []

        def value(match: re.Match[str]) -> str:
            name = match.group(1)
            if not isinstance(fields.get(name), str | int | float):
                return match.group(0)
            used.append(name)
            return str(fields[name])

        text = _FIELD.sub(value, self.task.prompt_template)
        if not used:
            names = [name for name, field in fields.items() if isinstance(field, str | int | float)]
            raise ConfigError(
                f"task.prompt_template={self.task.prompt_template!r} uses no field of item "
                f"{item.id}; available: {', '.join(sorted(names))}"
            )
        return text

    def prompts(self, items: Sequence[Item]) -> list[Prompt]:
        """Return the prompts of all items that fit.

        Raises:
            DataError: none fits.
        """
        prompts = [prompt for item in items if (prompt := self.prompt(item)) is not None]
        if not prompts:
            raise self.none_fits(len(items))
        return prompts

    def none_fits(self, count: int) -> DataError:
        """Return the error that says that no prompt is short enough."""
        return DataError(
            f"none of {count} prompts fits sampling.max_prompt_tokens="
            f"{self.max_prompt_tokens}: raise it, or shorten task.prompt_template"
        )

    def worked_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the worked answer's tokens, with the end token that training must learn."""
        if prompt.worked_answer is None:
            raise DataError(
                f"prompt {prompt.id} has no worked answer to warm-start on: set warmstart.steps=0 "
                "or, for a data set, data.worked_answer_column"
            )
        ids = self.tokenizer.encode(prompt.worked_answer, add_special_tokens=False)
        return (*ids, self.tokenizer.eos_token_id)

    def _token_ids(self, text: str) -> list[int]:
        if not self.task.chat_template:
            return self.tokenizer.encode(text)
        messages = [{"role": "user", "content": text}]
        if self.task.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": self.task.system_prompt})
        rendered = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        return self.tokenizer.encode(rendered, add_special_tokens=False)


class PromptStream:
    """Draws each item exactly once an epoch, in an order that the seed decides, or in their own.

    Use: `draw(n)`; `state_dict()` and `load_state_dict(...)` continue where a run stopped.
    """

    def __init__(
        self, items: Sequence[Item], renderer: Renderer, seed: int, *, shuffle: bool = True
    ) -> None:
        self.items = items
        self.renderer = renderer
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.position = 0
        self._order = self._shuffled(self.epoch)

    def draw(self, count: int) -> list[Prompt]:
        """Return the next prompts; those that are too long are skipped and counted.

        Raises:
            DataError: a whole epoch gave no prompt that fits.
        """
        prompts: list[Prompt] = []
        skipped = 0  # in a row
        items = self._items()
        while len(prompts) < count:
            prompt = self.renderer.prompt(next(items))
            if prompt is not None:
                prompts.append(prompt)
                skipped = 0
            elif (skipped := skipped + 1) >= 2 * len(self.items):  # so a whole epoch is among them
                raise self.renderer.none_fits(len(self.items))
        return prompts

    def upcoming(self, count: int) -> Iterator[str]:
        """Yield the texts of the items that the next draws take first, at most an epoch's."""
        for index in self._order[self.position :][:count]:
            yield self.renderer.text(self.items[index])

    def state_dict(self) -> dict[str, int]:
        """Return the position."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to a position that `state_dict` returned."""
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._shuffled(self.epoch)

    def recall(self, ids: Collection[str]) -> dict[str, Prompt]:
        """Return prompts that were drawn lately, by id.

        Raises:
            DataError: the task has no such item any more.
        """
        wanted, found = set(ids), {}
        for item in self._drawn() if wanted else ():
            if item.id in wanted and (prompt := self.renderer.prompt(item)) is not None:
                found[item.id] = prompt
                wanted.remove(item.id)
                if not wanted:
                    break
        if wanted:
            raise DataError(
                f"prompt {min(wanted)} was drawn before the checkpoint and the task does not have "
                "it now: continue with the data that the run began with"
            )
        return found

    def _drawn(self) -> Iterator[Item]:
        """Yield what was drawn, the latest first, back to the beginning of the epoch before."""
        for index in reversed(self._order[: self.position]):
            yield self.items[index]
        for index in reversed(self._shuffled(self.epoch - 1)):
            yield self.items[index]

    def _items(self) -> Iterator[Item]:
        while True:
            if self.position == len(self._order):
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._shuffled(self.epoch)
            self.position += 1
            yield self.items[self._order[self.position - 1]]

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(len(self.items)))
        if not self.shuffle:
            return order
        random.Random(f"{self.seed}/{epoch}").shuffle(order)
        return order
