"""Faults on purpose: which ones, when, and whether the run that took them lost anything."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rlpost.errors import ConfigError
from rlpost.placing.seats import seats
from rlpost.schema import RunConfig
from rlpost.words import split_words

PREFIX = "chaos."
KINDS = {
    "kill": "SIGKILL",
    "freeze": "SIGSTOP: it stays and never answers",
    "stall": "SIGSTOP, and SIGCONT two seconds later: nothing is to be lost",
    "kill_engine": "SIGKILL of vLLM's engine, a child of the rollout worker",
    "freeze_engine": "SIGSTOP of it",
}
PHASES = ("rollout", "reference", "learn", "publish")
ROLES = ("rollout", "reward", "reference", "learner")
_COLUMNS = ["prompt_id", "group", "dropped", "weight_versions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosPlan:
    """What `rlpost chaos` is asked for: how many faults, of which kinds, to which roles."""

    num_faults: int = 5
    seed: int = 0
    kinds: tuple[str, ...] = ("kill", "freeze")
    roles: tuple[str, ...] = ROLES


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something to be done to an actor `delay_s` after a phase of a step has begun."""

    step: int
    phase: str
    delay_s: float
    actor: str
    kind: str


def read_words(words: Sequence[str]) -> tuple[ChaosPlan, list[str]]:
    """Return the plan that a command line asks for, and its other words.

    Raises:
        ConfigError: an unknown field or value.
    """
    values: dict[str, Any] = {}
    known = [field.name for field in fields(ChaosPlan)]
    given, rest = split_words(words, PREFIX)
    for name, text in given.items():
        word = f"{PREFIX}{name}={text}"
        if name not in known:
            raise ConfigError(f"unknown field {PREFIX}{name}; available: {', '.join(known)}")
        if name in ("kinds", "roles"):
            values[name] = _several(word, text, list(KINDS) if name == "kinds" else list(ROLES))
        elif not text.isdigit():
            raise ConfigError(f"{word}: expected a whole number from 0 on")
        else:
            values[name] = int(text)
    return ChaosPlan(**values), rest


def _several(word: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in known:
            raise ConfigError(f"{word}: expected some of {', '.join(known)} with commas between")
    return names


def plan_faults(plan: ChaosPlan, config: RunConfig) -> list[Fault]:
    """Return the faults in their order, spread evenly over the run's steps.

    Every combination of role, kind and phase comes before one comes again.

    Raises:
        ConfigError: more faults than steps, or a learner is to be lost and nothing is kept.
    """
    if plan.num_faults > config.steps:
        raise ConfigError(
            f"chaos.num_faults={plan.num_faults} must be at most steps={config.steps}: one a step"
        )
    names = [seat.name for seat in seats(config, plan.roles)]
    present = [role for role in plan.roles if any(n.startswith(f"{role}-") for n in names)]
    if "learner" in present and not config.checkpoint.every:
        raise ConfigError(
            "the loss of a learner rank is survived from a checkpoint, and checkpoint.every=0 "
            "writes none: set checkpoint.every=1, or leave learner out of chaos.roles"
        )
    rng = random.Random(plan.seed)
    combinations = [
        (role, kind, phase)
        for role, kind, phase in product(present, plan.kinds, _phases(config))
        if role == "rollout" or not kind.endswith("_engine")
    ]
    drawn: list[tuple[str, str, str]] = []
    while len(drawn) < plan.num_faults:
        drawn += rng.sample(combinations, len(combinations))
    return [
        Fault(
            step=1 + index * config.steps // plan.num_faults,
            phase=phase,
            delay_s=round(rng.uniform(0.0, 0.3), 3),
            actor=rng.choice([name for name in names if name.startswith(f"{role}-")]),
            kind=kind,
        )
        for index, (role, kind, phase) in enumerate(drawn[: plan.num_faults])
    ]


def _phases(config: RunConfig) -> list[str]:
    return [phase for phase in PHASES if phase != "reference" or config.kl_coef > 0]


def allowing(plan: ChaosPlan, config: RunConfig) -> RunConfig:
    """Return the recipe with as many restarts as the faults can make necessary."""
    restarts = max(config.supervision.max_restarts, 3 * plan.num_faults)
    return replace(config, supervision=replace(config.supervision, max_restarts=restarts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Something that has to hold of a run, and whether it does."""

    text: str
    holds: bool
    detail: str = ""


def audit(config: RunConfig) -> list[Claim]:
    """Return what the files of a finished run say about what it may have lost."""
    run_dir = Path(config.run_dir)
    steps = [
        json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()
    ]
    claims = [
        Claim(
            text=f"each of the {config.steps} steps is recorded once, in order",
            holds=steps == list(range(config.steps + 1)),
        )
    ]
    if config.tracking.rollouts_every == 1:
        claims += _audit_rollouts(config, run_dir / "rollouts")
    return claims


def _audit_rollouts(config: RunConfig, folder: Path) -> list[Claim]:
    taken: Counter[str] = Counter()
    incomplete, old = [], []
    for step in range(1, config.steps + 1):
        rows = pq.read_table(folder / f"step_{step:06d}.parquet", columns=_COLUMNS).to_pylist()
        groups = Counter(row["group"] for row in rows)
        taken.update({row["group"]: row["prompt_id"] for row in rows}.values())
        if set(groups.values()) != {config.group_size} or len(groups) < config.prompts_per_step:
            incomplete.append(step)
        oldest = step - 1 - config.staleness_bound
        versions = [v for row in rows if not row["dropped"] for v in row["weight_versions"]]
        if any(not oldest <= version <= step - 1 for version in versions):
            old.append(step)
    times = sorted(set(taken.values()))
    return [
        Claim(
            text="each prompt was taken as often as every other, give or take the last epoch",
            holds=times[-1] - times[0] <= 1,
            detail=f"{len(taken)} prompts, {' or '.join(map(str, times))} times",
        ),
        Claim(
            text="each group is complete, with a reason for whatever of it was dropped",
            holds=not incomplete,
            detail=f"not in steps {incomplete}" if incomplete else "",
        ),
        Claim(
            text=f"no token is older than {config.staleness_bound} versions, or from the future",
            holds=not old,
            detail=f"not in steps {old}" if old else "",
        ),
    ]
