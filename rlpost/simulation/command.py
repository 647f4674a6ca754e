"""`rlpost simulate`: reads the command line, and the run that rates are taken from."""

import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rlpost.config import load, load_run
from rlpost.errors import ConfigError
from rlpost.schema import RunConfig
from rlpost.simulation.calibration import calibrate
from rlpost.simulation.rates import (
    FIELDS,
    PREFIX,
    DrawnShapes,
    RecordedShapes,
    Responses,
    Shapes,
    read_cluster,
    unknown_field,
)
from rlpost.simulation.records import Records, read_records
from rlpost.simulation.report import Report, as_text, summarise
from rlpost.simulation.running import simulate
from rlpost.words import split_words

log = logging.getLogger(__name__)

WARMUP_STEPS = 2
ENOUGH_STEPS = 20  # where neither a run nor the command says how many
_PROGRESS_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """The words of a command by what they are for."""

    overrides: tuple[str, ...]
    cluster: dict[str, str]
    run_dir: Path | None
    as_json: bool


def read_words(words: Sequence[str]) -> Command:
    """Sort the words of a command.

    Raises:
        ConfigError: an option that there is not.
    """
    cluster, rest = split_words(words, PREFIX)
    overrides, run_dir = [], None
    for word in rest:
        name, equals, value = word.partition("=")
        if name == "from" and equals:
            run_dir = Path(value)
        elif word != "--json":
            if word.startswith("-") or not equals:
                raise ConfigError(
                    f"rlpost simulate: {word}: expected field=value, cluster.FIELD=value, "
                    "from=RUN_DIRECTORY or --json"
                )
            overrides.append(word)
    return Command(
        overrides=tuple(overrides), cluster=cluster, run_dir=run_dir, as_json="--json" in words
    )


def main(words: Sequence[str]) -> int:
    """Simulate what a command says and print the report; return the exit code."""
    command = read_words(words)
    report = run_command(command)
    text = json.dumps(report.as_json(), indent=1) + "\n" if command.as_json else as_text(report)
    sys.stdout.write(text)
    return 0


def run_command(command: Command) -> Report:
    """Simulate what a command says."""
    num_skipped, cluster = _warmup(command.cluster)
    records, rates, recorded = None, None, None
    if command.run_dir is not None:
        records = read_records(command.run_dir, num_skipped)
        recorded = load_run(command.run_dir)
        rates = calibrate(recorded, records)
    rates, responses, unknown = read_cluster(cluster, rates)
    if unknown:
        raise unknown_field(next(iter(unknown)), [*FIELDS, "warmup_steps"])
    config = _config(command)
    if config.steps <= num_skipped:
        raise ConfigError(
            f"steps={config.steps} leaves nothing after cluster.warmup_steps={num_skipped}: "
            "raise it"
        )
    started = time.perf_counter()
    simulation = simulate(
        config,
        rates,
        _shapes(records, responses),
        num_skipped=num_skipped,
        progress=_Progress(config.steps),
    )
    same = records is not None and not command.overrides and not command.cluster
    return summarise(
        config,
        rates,
        simulation,
        num_skipped=num_skipped,
        measured_step_s=_measured(records) if same and records else None,
        took_s=time.perf_counter() - started,
    )


def _config(command: Command) -> RunConfig:
    """Return the recipe that is simulated: the one named, or else that of the run."""
    # The actors need no room on this machine.
    overrides = ["ray.address=simulated", *command.overrides]
    if command.run_dir is not None and not any(w.startswith("recipe=") for w in overrides):
        return load_run(command.run_dir, overrides)
    config = load(None, overrides)
    if not any(word.startswith("steps=") for word in overrides):
        config.steps = min(config.steps, ENOUGH_STEPS)
    return config


def _warmup(cluster: dict[str, str]) -> tuple[int, dict[str, str]]:
    text = cluster.get("warmup_steps", str(WARMUP_STEPS))
    if not text.isdecimal():
        raise ConfigError(f"cluster.warmup_steps must be a whole number of 0 or more, got {text}")
    return int(text), {name: value for name, value in cluster.items() if name != "warmup_steps"}


def _shapes(records: Records | None, responses: Responses | None) -> Shapes:
    if responses is not None:
        return DrawnShapes(responses)
    if records is None:
        return DrawnShapes(Responses())
    return RecordedShapes([group.shape for group in records.steady_groups])


def _measured(records: Records) -> float:
    steady = records.steady
    plain = [line for line in steady if "time/eval_s" not in line] or steady
    return median(line["time/step_s"] for line in plain)


class _Progress:
    """Logs where a long simulation is."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self._said_s = time.monotonic()

    def __call__(self, step: int, now_s: float) -> None:
        if time.monotonic() - self._said_s > _PROGRESS_S:
            self._said_s = time.monotonic()
            log.info("step %d of %d, %.0f s of virtual time", step, self.num_steps, now_s)
