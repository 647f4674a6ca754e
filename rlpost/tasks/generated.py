"""Tasks of reasoning-gym: questions made from seeds, without end."""

from collections.abc import Mapping, Sequence
from typing import Any

from rlpost.errors import ConfigError
from rlpost.schema import RunConfig
from rlpost.tasks.interface import Item

_EVAL_SEED = 2_000_000_011
_MAX_TRIES = 50


class GeneratedItems(Sequence[Item]):
    """Items of one generator, made when asked for; held-out questions are passed over.

    Where the item of an index is held out, the item of a later, otherwise unused index stands in.
    """

    def __init__(self, dataset: Any, size: int, name: str, held_out: frozenset[str]) -> None:
        self._dataset = dataset
        self._size = size
        self._name = name
        self._held_out = held_out

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: Any) -> Item:
        if not 0 <= index < self._size:
            raise IndexError(index)
        for attempt in range(_MAX_TRIES):
            entry = self._dataset[index + attempt * self._size]
            if entry["question"] not in self._held_out:
                return _item(self._name, "train", index, entry)
        raise ConfigError(
            f"task.name={self._name}: {_MAX_TRIES} questions in a row are held out for evaluation; "
            "widen task.parameters, or lower eval.num_prompts"
        )


class GeneratedSource:
    """A reasoning-gym generator by name, with its parameters."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.name = config.task.name or ""
        self.num_train = config.data.num_train or 100_000
        self._held_out: list[Item] | None = None

    def training(self) -> Sequence[Item]:
        """Return the training items, made lazily from the run's seed."""
        held_out = frozenset(i.question for i in self.held_out(self.config.eval.num_prompts))
        seed = self.config.seed * 7919 + 1
        dataset = self._dataset(seed, self.num_train * _MAX_TRIES)
        return GeneratedItems(dataset, self.num_train, self.name, held_out)

    def held_out(self, count: int) -> Sequence[Item]:
        """Return different questions, the same for every run."""
        if self._held_out is None:
            size = count * _MAX_TRIES
            dataset = self._dataset(_EVAL_SEED, size)
            found: dict[str, Mapping[str, Any]] = {}
            for index in range(size):
                entry = dataset[index]
                found.setdefault(entry["question"], entry)
                if len(found) == count:
                    break
            self._held_out = [
                _item(self.name, "eval", index, entry) for index, entry in enumerate(found.values())
            ]
        return self._held_out[:count]

    def _dataset(self, seed: int, size: int) -> Any:
        import reasoning_gym

        parameters = dict(self.config.task.parameters)
        try:
            return reasoning_gym.create_dataset(self.name, seed=seed, size=size, **parameters)
        except (ValueError, TypeError, AssertionError) as error:
            raise ConfigError(
                f"task.name={self.name}, task.parameters={parameters}: reasoning-gym refuses: "
                f"{error}"
            ) from error


def _item(name: str, split: str, index: int, entry: Mapping[str, Any]) -> Item:
    answer = str(entry["answer"])
    return Item(
        id=f"{name}/{split}/{index}",
        question=entry["question"],
        answer=answer,
        worked_answer=answer,
        metadata={"source_dataset": name, **entry["metadata"]},
    )
