"""How quick each part of a modelled cluster is, and how long its responses are."""

import difflib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import exp, isfinite, log, sqrt
from typing import Protocol

from rlpost.errors import ConfigError

PREFIX = "cluster."


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What `cluster.*` sets on the command line, or a run's own records say; units in the names.

    A learner's token counts once for each forward and backward pass, padding included.
    """

    decode_base_s: float  # one decode step of an engine, whatever its batch
    decode_per_sequence_s: float = 0.0  # and for each sequence in it
    prefill_per_token_s: float = 0.0
    request_s: float = 0.0  # from the driver to an engine and back, for each group
    verify_s: float = 0.0  # one trajectory in one verifier process
    learner_tokens_per_s: float  # one rank
    reference_tokens_per_s: float = 0.0  # 0: as the learner, forward only
    publish_s: float = 0.0  # of a publication, beside the bytes
    weight_bytes: float = 0.0
    weight_bytes_per_s: float = 0.0  # 0: the bytes take no time
    driver_per_trajectory_s: float = 0.0  # batches, advantages: everybody waits for it
    between_steps_s: float = 0.0  # metrics and rollouts on their way to disk, likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class Responses:
    """Lengths of made-up responses: log-normal, with a mean and a standard deviation in tokens."""

    prompt_tokens: float = 128.0
    length_mean: float = 256.0
    length_std: float = 128.0
    group_share: float = 0.5  # of the variance of log lengths: what a group has in common
    silent_frac: float = 0.0  # groups whose rewards are all alike


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupShape:
    """What a simulation knows of a group: tokens of its prompt and responses, and rewards."""

    prompt_tokens: int
    lengths: tuple[int, ...]
    rewards: tuple[float, ...]


class Shapes(Protocol):
    """Where groups come from."""

    def draw(self, rng: random.Random, group_size: int, most_tokens: int) -> GroupShape:
        """Return a group of so many responses, none longer than `most_tokens`."""
        ...


class DrawnShapes:
    """Groups drawn from distributions."""

    def __init__(self, responses: Responses) -> None:
        self.responses = responses
        ratio = responses.length_std / responses.length_mean
        self._sigma = sqrt(log(1 + ratio**2))
        self._mu = log(responses.length_mean) - self._sigma**2 / 2

    def draw(self, rng: random.Random, group_size: int, most_tokens: int) -> GroupShape:
        """Draw a group."""
        responses, sigma = self.responses, self._sigma
        common = rng.gauss(self._mu, sigma * sqrt(responses.group_share))
        own = sigma * sqrt(1 - responses.group_share)
        lengths = (round(exp(rng.gauss(common, own))) for _ in range(group_size))
        silent = rng.random() < responses.silent_frac
        return GroupShape(
            prompt_tokens=max(1, round(responses.prompt_tokens)),
            lengths=tuple(min(most_tokens, max(1, length)) for length in lengths),
            rewards=tuple(float(i % 2 and not silent) for i in range(group_size)),
        )


class RecordedShapes:
    """Groups drawn, with replacement, from those of a run."""

    def __init__(self, groups: Sequence[GroupShape]) -> None:
        self.groups = list(groups)

    def draw(self, rng: random.Random, group_size: int, most_tokens: int) -> GroupShape:
        """Draw a recorded group; one of another size gives members with replacement."""
        group = rng.choice(self.groups)
        members = range(len(group.lengths))
        if len(members) != group_size:
            members = rng.choices(members, k=group_size)
        return GroupShape(
            prompt_tokens=group.prompt_tokens,
            lengths=tuple(min(most_tokens, group.lengths[i]) for i in members),
            rewards=tuple(group.rewards[i] for i in members),
        )


def read_cluster(
    words: Mapping[str, str], rates: Rates | None
) -> tuple[Rates, Responses | None, dict[str, str]]:
    """Return rates and response lengths as `cluster.*` says, over those of a run if there are any.

    Lengths are None where nothing was said of them. What is neither comes back as it is.

    Raises:
        ConfigError: a rate is not known, not a number, or missing.
    """
    values = {name: _number(name, text) for name, text in words.items() if name in _FIELDS}
    others = {name: text for name, text in words.items() if name not in _FIELDS}
    rate_names, length_names = _names(Rates), _names(Responses)
    of_rates = {name: value for name, value in values.items() if name in rate_names}
    of_lengths = {name: value for name, value in values.items() if name in length_names}
    if rates is not None:
        rates = replace(rates, **of_rates)
    else:
        for name in ("decode_base_s", "learner_tokens_per_s"):
            if name not in of_rates:
                raise ConfigError(
                    f"{PREFIX}{name} is not known: measure it with from=RUN_DIRECTORY, or set it"
                )
        rates = Rates(**of_rates)
    responses = Responses(**of_lengths) if of_lengths else None
    _check(rates, responses)
    return rates, responses, others


def unknown_field(name: str, known: Sequence[str]) -> ConfigError:
    """Return the error about a field of `cluster` that there is not."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {PREFIX}{close[0]}?" if close else f"available: {', '.join(known)}"
    return ConfigError(f"unknown field {PREFIX}{name}; {hint}")


def _names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


_FIELDS = (*_names(Rates), *_names(Responses))
FIELDS = _FIELDS


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not isfinite(value) or value < 0:
        raise ConfigError(f"{PREFIX}{name} must be a number of 0 or more, got {text}")
    return value


def _check(rates: Rates, responses: Responses | None) -> None:
    for name in ("decode_base_s", "learner_tokens_per_s"):
        if not getattr(rates, name) > 0:
            raise ConfigError(f"{PREFIX}{name} must be positive, got {getattr(rates, name):g}")
    if responses is None:
        return
    if not responses.length_mean >= 1:
        raise ConfigError(f"{PREFIX}length_mean must be 1 or more, got {responses.length_mean:g}")
    for name in ("group_share", "silent_frac"):
        if not getattr(responses, name) <= 1:
            raise ConfigError(f"{PREFIX}{name} is a share of 1, got {getattr(responses, name):g}")
