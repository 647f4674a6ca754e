"""What the commands run: train, warm start, evaluation, export."""

import asyncio
import logging
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from actors.driver import run
from actors.ending import Ending
from actors.launch import Cast, running
from actors.training import prepare_policy, train_with
from actors.watching import watched
from actors.workshop import Workshop, as_yaml
from rlpost.atomic import atomic_folder
from rlpost.checkpoints.resuming import Start, complete_export, find_start, newest_of
from rlpost.config import recipe_name
from rlpost.errors import ConfigError
from rlpost.learning import training_phase
from rlpost.placing.seats import ROLES
from rlpost.reporting.console import Console, View
from rlpost.schema import RunConfig

log = logging.getLogger(__name__)

STARTING = "starting Ray, vLLM, DeepSpeed and the verifiers: a minute or two on a small machine"


def on_ray(
    config: RunConfig,
    program: Callable[[RunConfig, Awaitable[Workshop]], Awaitable[None]],
    watch: Ending | None = None,
) -> int:
    """Run a program on Ray and return the exit code; task and model are prepared meanwhile."""
    with watch or Ending() as ending, ThreadPoolExecutor(1) as pool:
        log.info(STARTING)  # from here on a signal ends the run in order
        preparing = pool.submit(Workshop, config)
        return run(config, ending, lambda: program(config, asyncio.wrap_future(preparing)))


def train(config: RunConfig) -> int:
    """Train as a recipe says, anew or from a checkpoint; return the exit code."""
    start = find_start(config, as_yaml(config))
    if start.url is not None and start.step == config.steps:
        complete_export(config, start.url)
        log.info("finished already: all %d steps are done", config.steps)
        log.info("%s", _summary(config, start.history))
        return 0
    ending = Ending(stoppable=True)
    return on_ray(
        config, lambda config, preparing: _train(config, preparing, start, ending), ending
    )


async def _train(
    config: RunConfig, preparing: Awaitable[Workshop], start: Start, ending: Ending
) -> None:
    title = f"{config.task.name} with {config.objective.name}"
    async with running(config, ROLES) as cast:
        with Console(total_steps=config.steps, title=title, first_step=start.step) as view:
            history = await train_with(cast, config, preparing, view, start, ending)
            view.message(_summary(config, history))


def _summary(config: RunConfig, history: Sequence[dict[str, float]]) -> str:
    """Return the last lines of a run: what rose, where it lies, what to try next."""
    name = next((key for key in history[-1] if key.endswith("pass@1")), None)
    lines = [f"run directory: {config.run_dir}"]
    if name is not None and name in history[0]:
        first, last = history[0][name], history[-1][name]
        lines.insert(
            0,
            f"held-out accuracy on {config.eval.num_prompts} problems never trained on: "
            f"{first:.1%} -> {last:.1%} in {len(history) - 1} steps",
        )
    installed = Path(sys.executable).with_name("rlpost")
    on_path = shutil.which("rlpost") == str(installed)
    command = "rlpost" if on_path else os.path.relpath(installed)
    other = "holder" if config.objective.name != "holder" else "clip"
    lines.append(f"try next: {command} report {config.run_dir}")
    lines.append(f"      or: {command} train recipe={recipe_name()} objective={other}")
    if config.checkpoint.export_at_end:
        lines.append(f"      or: {command} eval {config.run_dir}/export recipe={recipe_name()}")
    return "\n".join(lines)


def warmstart(config: RunConfig) -> int:
    """Run only the supervised warm start; the policy lies in `run_dir/warmstart`."""
    if config.warmstart.steps < 1:
        raise ConfigError("warmstart.steps must be above 0 for a warm start, got 0")
    return on_ray(config, _warmstart)


async def _warmstart(config: RunConfig, preparing: Awaitable[Workshop]) -> None:
    async with running(config, ("learner",)) as cast:
        with Console(total_steps=config.warmstart.steps, title="warm start") as view:
            workshop = await preparing
            async with watched(cast, config, view):
                folder = await prepare_policy(workshop, await cast.learners(), view)
            view.message(f"warm-started policy: {folder}")


def evaluate(config: RunConfig, checkpoint: Path) -> int:
    """Measure a checkpoint's accuracy on a task's held-out prompts."""
    folder = _policy_folder(checkpoint)
    config.model.path = config.model.tokenizer_path = str(folder.absolute())
    return on_ray(config, _evaluate)


async def _evaluate(config: RunConfig, preparing: Awaitable[Workshop]) -> None:
    async with running(config, ("learner", "rollout", "reward")) as cast:
        with Console(total_steps=1, title=f"evaluating {config.model.path}") as view:
            workshop = await preparing
            async with watched(cast, config, view):
                values = await cast.alarm.watch(_measured(cast, workshop, view))
            for name, value in values.items():
                view.message(f"{name}: {value:g}")


async def _measured(cast: Cast, workshop: Workshop, view: View) -> dict[str, float]:
    """Return the metrics of the policy that the recipe names."""
    config = workshop.config
    folder = Path(config.model.path or "")
    rollouts, rewards, learner = await asyncio.gather(
        cast.rollouts(folder), cast.rewards(), cast.learners()
    )
    await learner.load(folder, training_phase(config), config.learner.start_timeout_s)
    learner.attach(rollouts)
    await learner.publish(0)
    evaluator = workshop.evaluator(rollouts, rewards)
    view.phase("eval")
    return await evaluator.run()


def export(checkpoint: Path, folder: Path) -> int:
    """Copy a checkpoint's policy as a transformers folder."""
    source = _policy_folder(checkpoint)
    with atomic_folder(folder) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
    sys.stdout.write(f"{folder}: the policy of {source}\n")
    return 0


def _policy_folder(checkpoint: Path) -> Path:
    """Return the transformers folder of a checkpoint, a run directory, or the folder itself.

    A run directory without its final export has that of its newest complete checkpoint.
    """
    for candidate in (checkpoint, checkpoint / "export"):
        if (candidate / "config.json").is_file():
            return candidate
    if (newest := newest_of(checkpoint)) is not None:
        return newest / "export"
    raise ConfigError(
        f"{checkpoint}: holds no policy: expected config.json in it or in its folder export"
    )
