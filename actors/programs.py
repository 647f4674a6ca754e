"""What the commands run: train, warm start, evaluation, export."""

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from actors.ending import Ending
from actors.handles import LearnerGroup
from actors.launch import Cast, run, running
from rlpost.atomic import atomic_folder, write_text
from rlpost.batching import BatchPlan, Sample, build_batches
from rlpost.config import recipe_name
from rlpost.console import Console, View
from rlpost.controller import Controller, Parts
from rlpost.errors import ConfigError
from rlpost.evaluation import Evaluator
from rlpost.learning import training_phase, warmstart_phase
from rlpost.models import load_tokenizer, prepare_model
from rlpost.rollouts_log import write_rollouts
from rlpost.schema import RunConfig
from rlpost.tasks.build import build_source
from rlpost.tasks.interface import PromptStream, Renderer, Source
from rlpost.tracking import build_tracker
from rlpost.types import Group, Prompt, Trajectory

log = logging.getLogger(__name__)

TRAINING_ROLES = ("learner", "rollout", "reference", "reward")


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


def asdict_plain(config: RunConfig) -> dict[str, Any]:
    """Return the resolved config as plain values, paths absolute."""
    return asdict(config)


STARTING = "starting Ray, vLLM, DeepSpeed and the verifiers: a minute or two on a small machine"


def as_yaml(config: RunConfig) -> str:
    """Return the resolved config as a run directory keeps it."""
    return OmegaConf.to_yaml(asdict_plain(config))


def _on_ray(
    config: RunConfig, program: Callable[[RunConfig, Awaitable[Workshop]], Awaitable[None]]
) -> int:
    """Run a program on Ray and return the exit code; task and model are prepared meanwhile."""
    log.info(STARTING)
    with Ending() as ending, ThreadPoolExecutor(1) as pool:
        preparing = pool.submit(Workshop, config)
        return run(config, ending, lambda: program(config, asyncio.wrap_future(preparing)))


def train(config: RunConfig) -> int:
    """Train as a recipe says; return the exit code."""
    return _on_ray(config, _train)


async def _train(config: RunConfig, preparing: Awaitable[Workshop]) -> None:
    title = f"{config.task.name} with {config.objective.name}"
    async with running(config, TRAINING_ROLES) as cast:
        with Console(total_steps=config.steps, title=title) as view:
            history = await train_with(cast, config, preparing, view)
            view.message(_summary(config, history))


async def train_with(
    cast: Cast, config: RunConfig, preparing: Awaitable[Workshop], view: View
) -> list[dict[str, float]]:
    """Run one training on a cast that was made for it, or for a run with the same actors.

    Returns each step's metrics, those of step 0 first.
    """
    workshop = await preparing
    tracker = build_tracker(config.tracking, workshop.run_dir, asdict_plain(config))
    with closing(tracker):
        recording = Recording(config, tracker, view)
        controller = await make_controller(workshop, cast, recording, view)
        try:
            history = [await controller.start()]
            for step in range(1, config.steps + 1):
                history.append(await controller.step(step))
                await _checkpoint(config, controller.parts.learner, step)
        finally:
            await controller.close()
    return history


async def make_controller(
    workshop: Workshop, cast: Cast, recording: Recording, view: View
) -> Controller:
    """Start all roles, the rollout workers while the learner warm-starts."""
    config = workshop.config
    # Any model of the policy's shape serves vLLM to start with, unless adapters alone will follow.
    at_once = not (config.model.lora.by_itself and config.warmstart.steps)
    early = asyncio.ensure_future(cast.rollouts(workshop.model_folder)) if at_once else None
    verifying = asyncio.ensure_future(cast.rewards())
    try:
        learner = await cast.learners()
        folder = await _prepare_policy(workshop, learner, view)
        reference = await cast.reference(folder)
        await learner.load(folder, training_phase(config), config.learner.start_timeout_s)
        rewards = await verifying
        rollouts = await (early or cast.rollouts(folder))
    except BaseException:
        started = [task for task in (early, verifying) if task]
        for task in started:
            task.cancel()
        await asyncio.gather(*started, return_exceptions=True)
        raise
    num_vllm_ranks = config.rollout.num_workers * config.rollout.tensor_parallel_size
    await learner.attach(rollouts, num_vllm_ranks, config.weights.timeout_s)
    evaluator = Evaluator(
        workshop.source.name,
        workshop.held_out(),
        rollouts,
        rewards,
        config.eval,
        config.sampling.max_response_tokens,
    )
    parts = Parts(
        prompts=workshop.stream(),
        rollouts=rollouts,
        verifiers=rewards,
        learner=learner,
        reference=reference,
    )
    return Controller(config, parts, evaluator, recording)


async def _prepare_policy(workshop: Workshop, learner: LearnerGroup, view: View) -> Path:
    """Return the folder to train from, after a warm start where the recipe has one."""
    config = workshop.config
    if not config.warmstart.steps:
        return workshop.model_folder
    folder = workshop.run_dir / "warmstart"
    await learner.load(
        workshop.model_folder, warmstart_phase(config), config.learner.start_timeout_s
    )
    plan = BatchPlan(
        num_minibatches=1,
        num_ranks=learner.num_ranks,
        micro_batch_size=config.learner.micro_batch_size,
        micro_batch_tokens=config.learner.micro_batch_tokens,
        packing=config.learner.packing,
        reduction="token_mean",
        max_response_tokens=config.sampling.max_response_tokens,
    )
    stream = workshop.stream(salt=1)
    for step in range(1, config.warmstart.steps + 1):
        prompts = stream.draw(config.warmstart.batch_size)
        samples = [_worked(prompt, workshop.renderer) for prompt in prompts]
        metrics = await learner.update(build_batches(samples, plan, step), step)
        loss = metrics.values()["policy/loss"]
        view.phase(f"warm start {step}/{config.warmstart.steps}, loss {loss:.3f}")
        if step % 50 == 0:
            view.message(f"warm start {step}/{config.warmstart.steps}: loss {loss:.4f}")
    await learner.export(folder)
    return folder


def _worked(prompt: Prompt, renderer: Renderer) -> Sample:
    """Return a worked answer as a trajectory with advantage 1."""
    token_ids = renderer.worked_ids(prompt)
    trajectory = Trajectory(
        prompt_ids=prompt.token_ids,
        token_ids=token_ids,
        loss_mask=(True,) * len(token_ids),
        behavior_logprobs=(0.0,) * len(token_ids),
        weight_versions=(0,) * len(token_ids),
        text=prompt.worked_answer or "",
        finish_reason="stop",
    )
    return Sample(trajectory=trajectory, advantage=1.0)


async def _checkpoint(config: RunConfig, learner: Any, step: int) -> None:
    """Write a checkpoint or the final export when their time has come."""
    run_dir = Path(config.run_dir)
    every = config.checkpoint.every
    if every and step % every == 0:
        folder = run_dir / "checkpoints" / f"step_{step:06d}"
        with atomic_folder(folder, overwrite=True) as temporary:
            await learner.save(temporary)
            await learner.export(temporary / "export")
            write_text(temporary / "config.yaml", (run_dir / "config.yaml").read_text())
        _keep_newest(folder.parent, config.checkpoint.keep)
    if step == config.steps and config.checkpoint.export_at_end:
        await learner.export(run_dir / "export")


def _keep_newest(folder: Path, count: int) -> None:
    import shutil

    for old in sorted(folder.glob("step_*"))[:-count]:
        shutil.rmtree(old)


def _summary(config: RunConfig, history: Sequence[dict[str, float]]) -> str:
    """Return the last lines of a run: what rose, where it lies, what to try next."""
    name = next((key for key in history[-1] if key.endswith("pass@1")), None)
    lines = [f"run directory: {config.run_dir}"]
    if name is not None:
        first, last = history[0][name], history[-1][name]
        lines.insert(
            0,
            f"held-out accuracy on {config.eval.num_prompts} problems never trained on: "
            f"{first:.1%} -> {last:.1%} in {len(history) - 1} steps",
        )
    command = os.path.relpath(Path(sys.executable).with_name("rlpost"))
    other = "holder" if config.objective.name != "holder" else "clip"
    lines.append(f"try next: {command} train recipe={recipe_name()} objective={other}")
    if config.checkpoint.export_at_end:
        lines.append(f"      or: {command} eval {config.run_dir}/export recipe={recipe_name()}")
    return "\n".join(lines)


def warmstart(config: RunConfig) -> int:
    """Run only the supervised warm start; the policy lies in `run_dir/warmstart`."""
    if config.warmstart.steps < 1:
        raise ConfigError("warmstart.steps must be above 0 for a warm start, got 0")
    return _on_ray(config, _warmstart)


async def _warmstart(config: RunConfig, preparing: Awaitable[Workshop]) -> None:
    async with running(config, ("learner",)) as cast:
        with Console(total_steps=config.warmstart.steps, title="warm start") as view:
            folder = await _prepare_policy(await preparing, await cast.learners(), view)
            view.message(f"warm-started policy: {folder}")


def evaluate(config: RunConfig, checkpoint: Path) -> int:
    """Measure a checkpoint's accuracy on a task's held-out prompts."""
    folder = _policy_folder(checkpoint)
    config.model.path = config.model.tokenizer_path = str(folder)
    return _on_ray(config, _evaluate)


async def _evaluate(config: RunConfig, preparing: Awaitable[Workshop]) -> None:
    folder = Path(config.model.path or "")
    async with running(config, ("learner", "rollout", "reward")) as cast:
        with Console(total_steps=1, title=f"evaluating {folder}") as view:
            workshop = await preparing
            rollouts, rewards, learner = await asyncio.gather(
                cast.rollouts(folder), cast.rewards(), cast.learners()
            )
            await learner.load(folder, training_phase(config), config.learner.start_timeout_s)
            num_vllm_ranks = config.rollout.num_workers * config.rollout.tensor_parallel_size
            await learner.attach(rollouts, num_vllm_ranks, config.weights.timeout_s)
            await learner.publish(0)
            evaluator = Evaluator(
                workshop.source.name,
                workshop.held_out(),
                rollouts,
                rewards,
                config.eval,
                config.sampling.max_response_tokens,
            )
            view.phase("eval")
            values = await evaluator.run()
            for name, value in values.items():
                view.message(f"{name}: {value:g}")


def export(checkpoint: Path, folder: Path) -> int:
    """Copy a checkpoint's policy as a transformers folder."""
    import shutil

    source = _policy_folder(checkpoint)
    with atomic_folder(folder) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
    return 0


def _policy_folder(checkpoint: Path) -> Path:
    """Return the transformers folder of a checkpoint, a run directory, or the folder itself."""
    for candidate in (checkpoint, checkpoint / "export"):
        if (candidate / "config.json").is_file():
            return candidate
    raise ConfigError(
        f"{checkpoint}: holds no policy: expected config.json in it or in its folder export"
    )
