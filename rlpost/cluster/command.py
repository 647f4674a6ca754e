"""`rlpost submit`: renders a job from a recipe, and sends it or writes it into a folder."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlpost.atomic import write_text
from rlpost.cluster.jobs import remember, remembered
from rlpost.cluster.ray_jobs import Connect
from rlpost.cluster.registry import NAMES, scheduler, target
from rlpost.cluster.settings import MAX_NAME
from rlpost.cluster.targets import Target
from rlpost.config import load, recipe_name
from rlpost.errors import ConfigError, RlpostError
from rlpost.schema import RunConfig
from rlpost.simulation.rates import PREFIX
from rlpost.usage import usage
from rlpost.words import split_words


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """The words of a command by what they are for; without `out` and `render` it is sent."""

    overrides: tuple[str, ...]
    kind: str
    cluster: dict[str, str]
    out: Path | None
    render: bool


def read_words(words: Sequence[str]) -> Command:
    """Sort the words of a command.

    Raises:
        ConfigError: an option that there is not, or one that is missing.
    """
    cluster, rest = split_words(words, PREFIX)
    overrides, kind, out, render = [], "", "", False
    for word in rest:
        name, equals, value = word.partition("=")
        if word == "--render":
            render = True
        elif word.startswith("-") or not equals:
            raise ConfigError(f"rlpost submit: {word}: expected {usage('submit')}")
        elif name == "out":
            out = value
        elif name == "cluster":
            kind = value
        else:
            overrides.append(word)
    if kind not in NAMES:
        raise ConfigError(
            f"cluster={kind or '(not set)'}: available: {', '.join(NAMES)}; {usage('submit')}"
        )
    return Command(
        overrides=tuple(overrides),
        kind=kind,
        cluster=cluster,
        out=Path(out) if out else None,
        render=render,
    )


def main(words: Sequence[str], connect: Connect) -> int:
    """Render a job, then print it, write it, or send it; return the exit code."""
    command = read_words(words)
    chosen, files, warnings = prepare(command, connect)
    for line in warnings:
        sys.stderr.write(f"warning: {line}\n")
    if command.render:
        # As it can be piped on: a single file as it is, several ones, which are YAML, as documents.
        titled = [f"---\n# {name}\n{text}" for name, text in files.items()]
        sys.stdout.write("".join(titled if titled[1:] else files.values()))
    if command.out:
        paths = write(command.out, files, chosen.file_names)
        places = "".join(f"{path}\n" for path in paths)
        sys.stdout.write(f"{places}Nothing was submitted. To do so: {chosen.by_hand(paths)}\n")
    if not command.render and not command.out:
        _refuse_twice(chosen.cluster.name, connect)
        job = chosen.submit(files)
        remember(job)
        sys.stdout.write(f"{job.target} has it as {job.id}: rlpost jobs logs {job.name}\n")
    return 0


def _refuse_twice(name: str, connect: Connect) -> None:
    """Refuse a second job in the run directory of one that goes on."""
    for job in remembered():
        if job.name != name:
            continue
        try:
            state = scheduler(job.target, connect).state(job)
        except RlpostError:
            continue  # who cannot be asked cannot forbid it
        if not state.over:
            raise ConfigError(
                f"{name} is {state.says} as {job.id} of {job.target}, and two jobs cannot share "
                f"its run directory: rlpost jobs stop {name}, or choose another {PREFIX}name"
            )


def prepare(command: Command, connect: Connect) -> tuple[Target, dict[str, str], list[str]]:
    """Return where a job goes, its files, and what may be a mistake.

    Raises:
        ConfigError: the recipe or the settings ask for what cannot be.
    """
    make = target(command.kind, connect)
    chosen = make(command.cluster, "not-named-yet")
    chosen.check(command.overrides)
    # The actors need no room on this machine.
    seen_here = [_seen_here(word, chosen.elsewhere) for word in command.overrides]
    config = load(None, [*seen_here, *chosen.connects, "resume=auto"])
    if "name" not in command.cluster:
        chosen = make(command.cluster, default_name(config))
    warnings = []
    if not config.checkpoint.every:
        warnings.append(
            "checkpoint.every=0: after a failure there is nothing to resume from, and the job "
            "starts anew"
        )
    return chosen, chosen.render(config, command.overrides), warnings


def write(folder: Path, files: Mapping[str, str], every: Sequence[str]) -> list[Path]:
    """Write files into a folder and return them; of every other name none is left there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in every:
        if name in files:
            write_text(folder / name, files[name])
        else:
            (folder / name).unlink(missing_ok=True)  # of a rendering before this one
    return [folder / name for name in files]


def _seen_here(word: str, elsewhere: str) -> str:
    """Return an override as this machine can check it: what lies elsewhere is not here."""
    name, _, value = word.partition("=")
    there = elsewhere and value.startswith(f"{elsewhere}/")
    return f"{name}=not/here" if there and name in ("data.path", "model.path") else word


def default_name(config: RunConfig) -> str:
    """Return a name that every target takes, of the recipe, the objective and the seed."""
    text = f"{recipe_name()}-{config.objective.name}-seed{config.seed}".lower()
    return re.sub(r"[^a-z0-9]+", "-", text)[:MAX_NAME].strip("-")
