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

    def __init__(
        self, source: "GeneratedSource", dataset: Any, size: int, held_out: frozenset[str]
    ) -> None:
        self._source = source
        self._dataset = dataset
        self._size = size
        self._held_out = held_out

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: Any) -> Item:  # pyrefly: ignore[bad-override]  # no slices
        if not 0 <= index < self._size:
            raise IndexError(index)
        for attempt in range(_MAX_TRIES):
            entry = self._dataset[index + attempt * self._size]
            if entry["question"] not in self._held_out:
                return self._source.item("train", index, entry)
        raise ConfigError(
            f"task.name={self._source.name}: {_MAX_TRIES} questions in a row are held out for "
            "evaluation; widen task.parameters, or lower eval.num_prompts"
        )


class GeneratedSource:
    """A reasoning-gym generator by name, with its parameters."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.name = config.task.name or ""
        self.parameters = dict(config.task.parameters)
        self.num_train = config.data.num_train or 100_000

    def training(self) -> Sequence[Item]:
        """Return the training items, made lazily from the run's seed."""
        held_out = frozenset(i.question for i in self.held_out(self.config.eval.num_prompts))
        # The generator seeds item i with seed + i: runs share no item if their seeds lie this far
        # apart.
        size = self.num_train * _MAX_TRIES
        dataset = self._dataset(self.config.seed * size, size)
        return GeneratedItems(self, dataset, self.num_train, held_out)

    def held_out(self, count: int) -> Sequence[Item]:
        """Return different questions, the same for every run.

        Raises:
            ConfigError: the generator has fewer different questions than that.
        """
        size = count * _MAX_TRIES
        dataset = self._dataset(_EVAL_SEED, max(size, 1))
        found: dict[str, Mapping[str, Any]] = {}
        for index in range(size):
            if len(found) == count:
                break
            entry = dataset[index]
            found.setdefault(entry["question"], entry)
        if len(found) < count:
            raise ConfigError(
                f"eval.num_prompts={count}: {size} tries of task.name={self.name} gave only "
                f"{len(found)} different questions; lower it, or widen task.parameters"
            )
        return [self.item("eval", index, entry) for index, entry in enumerate(found.values())]

    def item(self, split: str, index: int, entry: Mapping[str, Any]) -> Item:
        """Return a generator's entry with what its verifier needs."""
        answer = str(entry["answer"])
        generator = {"source_dataset": self.name, "task_parameters": self.parameters}
        return Item(
            id=f"{self.name}/{split}/{index}",
            question=entry["question"],
            answer=answer,
            worked_answer=answer,
            metadata={**entry["metadata"], **generator},
        )

    def _dataset(self, seed: int, size: int) -> Any:
        import reasoning_gym

        try:
            return reasoning_gym.create_dataset(self.name, seed=seed, size=size, **self.parameters)
        except (ValueError, TypeError, AssertionError) as error:
            raise ConfigError(
                f"task.name={self.name}, task.parameters={self.parameters}: reasoning-gym refuses: "
                f"{error}"
            ) from error
