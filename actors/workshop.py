"""What of a run lives in the driver: its directory, tokenizer, task and records."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlpost.atomic import write_text
from rlpost.evaluation import Evaluator
from rlpost.guards import overlap
from rlpost.models import load_tokenizer, prepare_model
from rlpost.redaction import redacted
from rlpost.reporting.console import View
from rlpost.reporting.rollouts_log import write_rollouts
from rlpost.roles import Rollouts, Verifiers
from rlpost.schema import RunConfig
from rlpost.tasks.build import build_source
from rlpost.tasks.interface import PromptStream, Renderer, Source
from rlpost.types import Group, Prompt


class Recording:
    """Writes each step to the trackers, the rollout files and the console."""

    def __init__(self, config: RunConfig, tracker: Any, view: View) -> None:
        self.every = config.tracking.rollouts_every
        self.folder = Path(config.run_dir) / "rollouts"
        self.tracker = tracker
        self.view = view

    def phase(self, name: str) -> None:
        """Say what is going on."""
        self.view.phase(name)

    def record(self, step: int, values: dict[str, float], groups: Sequence[Group]) -> None:
        """Keep one step's metrics and rollouts."""
        self.tracker.log(step, values)
        self.view.step(step, values)
        if groups and self.every and step % self.every == 0:
            write_rollouts(self.folder, step, groups)


class Workshop:
    """The parts of a run that live in the driver: folders, tokenizer, task."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.run_dir = Path(config.run_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        write_text(self.run_dir / "config.yaml", as_yaml(config))
        self.source: Source = build_source(config)
        self.renderer = Renderer(config, load_tokenizer(config))
        self.model_folder = prepare_model(config, self.run_dir / "model")
        self.overlap = self._overlap()

    def stream(self, salt: int = 0) -> PromptStream:
        """Return the training prompts in seeded order."""
        return PromptStream(
            self.source.training(),
            self.renderer,
            self.config.seed + salt,
            shuffle=self.config.data.shuffle,
        )

    def held_out(self) -> list[Prompt]:
        """Return the evaluation prompts, none when evaluation is off."""
        if not self.config.eval.every:
            return []
        return self.renderer.prompts(self.source.held_out(self.config.eval.num_prompts))

    def evaluator(self, rollouts: Rollouts, verifiers: Verifiers) -> Evaluator:
        """Return what measures a policy on the evaluation prompts."""
        return Evaluator(
            self.source.name,
            self.held_out(),
            rollouts,
            verifiers,
            self.config.eval,
            self.config.sampling.max_response_tokens,
        )

    def _overlap(self) -> str | None:
        """Say which evaluation prompts are among those that this run will train on, if any."""
        config = self.config
        held_out = self.held_out()
        warm = config.warmstart.steps * config.warmstart.batch_size
        coming = config.steps * (config.prompts_per_step + config.max_replacements)
        texts = chain(self.stream(salt=1).upcoming(warm), self.stream().upcoming(coming))
        return overlap(texts, [prompt.text for prompt in held_out]) if held_out else None


def asdict_plain(config: RunConfig) -> dict[str, Any]:
    """Return the resolved config as plain values, without secrets."""
    return redacted(asdict(config))


def as_yaml(config: RunConfig) -> str:
    """Return the resolved config as a run directory keeps it."""
    return OmegaConf.to_yaml(asdict_plain(config))
