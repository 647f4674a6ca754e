"""Objectives compared over seeds: which runs there are, which are finished, what they recorded."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlpost.errors import ConfigError
from rlpost.objective_configs import objective_label
from rlpost.schema import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Labelled objectives, a number of seeds, and the folder that their runs share.

    A label is an objective's name, with hyperparameters where wanted: `mhpo:dhp=false:c=2`.
    """

    labels: tuple[str, ...]
    num_seeds: int
    folder: Path

    def runs(self) -> Iterator[tuple[str, int, Path]]:
        """Yield each run's label, seed and folder; a seed's runs follow each other."""
        for seed in range(self.num_seeds):
            for label in self.labels:
                yield label, seed, self.run_dir(label, seed)

    def run_dir(self, label: str, seed: int) -> Path:
        """Return the folder of one run."""
        return self.folder / label.replace(":", "_").replace("=", "-") / f"seed{seed}"


def read_command(words: Sequence[str]) -> tuple[Comparison, list[str]]:
    """Return the comparison that a command line asks for, and the overrides that remain.

    Raises:
        ConfigError: a part is missing or has the wrong form.
    """
    given, rest = {"objectives": "", "seeds": "3", "out": ""}, []
    for word in words:
        key, separator, value = word.partition("=")
        if separator and key in given:
            given[key] = value
        else:
            rest.append(word)
    labels = tuple(filter(None, given["objectives"].strip("[]").replace(" ", "").split(",")))
    if len(labels) < 1 or len(set(labels)) < len(labels):
        raise ConfigError(
            f"objectives={given['objectives']} must name different objectives: "
            "objectives=[clip,mhpo,mhpo:dhp=false]"
        )
    for label in labels:
        objective_label(label)
    if not given["seeds"].isdecimal() or int(given["seeds"]) < 1:
        raise ConfigError(f"seeds={given['seeds']} must be a number from 1: seeds=5 runs 0 to 4")
    if not given["out"]:
        raise ConfigError("out=FOLDER is required: runs, curves and the page go there")
    folder = Path(given["out"])
    return Comparison(labels=labels, num_seeds=int(given["seeds"]), folder=folder), rest


def overrides_of(label: str, seed: int) -> list[str]:
    """Return a run's overrides."""
    name, fields = objective_label(label)
    return [f"objective={name}", *(f"objective.{field}" for field in fields), f"seed={seed}"]


def finished(run_dir: Path, config: RunConfig, plain: str) -> bool:
    """Say whether a folder holds this very run, whole; `plain` is its config.yaml.

    The folder may have been moved since.

    Raises:
        ConfigError: it holds a run of another configuration.
    """
    written = run_dir / "config.yaml"
    if not written.is_file():
        return False
    old, new = _settings(written.read_text(encoding="utf-8")), _settings(plain)
    if old != new:
        changed = [line.strip() for line in new if line not in old]
        raise ConfigError(
            f"{run_dir} holds a run of another configuration (now {', '.join(changed[:3])}): use "
            "another out=FOLDER, or remove it"
        )
    lines = read_metrics(run_dir) if (run_dir / "metrics.jsonl").is_file() else []
    return bool(lines) and lines[-1].get("step") == config.steps


def _settings(plain: str) -> list[str]:
    return [line for line in plain.splitlines() if not line.startswith("run_dir:")]


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return what a run recorded, a mapping a step."""
    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]
