"""One training: its parts started, its steps run, its checkpoints written."""

import asyncio
import errno
from collections.abc import Awaitable, Generator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from actors.checkpointing import Checkpointer
from actors.ending import Ending
from actors.launch import Cast
from actors.learner_group import LearnerGroup
from actors.watching import watched
from actors.workshop import Recording, Workshop, as_yaml, asdict_plain
from rlpost.batching import BatchPlan, Sample, build_batches
from rlpost.checkpoints.resuming import ANEW, Start, find_start, store_of
from rlpost.controller import Controller, Parts
from rlpost.errors import LostError, ResourceError
from rlpost.guards import Guards
from rlpost.learning import training_phase, warmstart_phase
from rlpost.reporting.console import View
from rlpost.reporting.tracking import build_tracker
from rlpost.schema import RunConfig
from rlpost.stalls.stall import queues
from rlpost.tasks.interface import Renderer
from rlpost.types import Prompt, Trajectory


async def train_with(
    cast: Cast,
    config: RunConfig,
    preparing: Awaitable[Workshop],
    view: View,
    start: Start = ANEW,
    ending: Ending | None = None,
) -> list[dict[str, float]]:
    """Run one training on a cast that was made for it, or for a run with the same actors.

    When a learner rank is lost, all ranks go on from the newest checkpoint. Returns each step's
    metrics, those of step 0 first.

    Raises:
        GuardError: a guard says that going on is in vain.
        StoppedError: `ending` has been asked to stop; the checkpoint of the last step is written.
        ActorError: more actors were lost than the recipe allows.
        StallError: nothing advanced any more, and `watchdog.action=stop`.
    """
    workshop = await preparing
    cast.incidents.folder = workshop.run_dir
    async with watched(cast, config, view):
        while True:
            try:
                return await cast.alarm.watch(_train_from(cast, workshop, view, start, ending))
            except LostError as loss:
                cast.incidents.note("learner", str(loss))
                start = _start_again(config, loss)
                view.message(f"{loss}: all learner ranks go on after step {start.step}")
                await cast.renew_learners(loss)


def _start_again(config: RunConfig, loss: LostError) -> Start:
    """Return where to go on after the loss of a learner rank.

    Raises:
        LostError: the run keeps no checkpoints.
    """
    if not config.checkpoint.every:
        raise LostError(
            f"{loss}; what it held is gone, and checkpoint.every=0 kept nothing to go on from: set "
            "checkpoint.every=N for a run that survives the loss of a learner rank"
        ) from loss
    # A run that began with another's checkpoint begins with it again until it has its own.
    fresh = config.resume == "never" or bool(store_of(config).steps())
    again = replace(config, resume="auto") if fresh else config
    return find_start(again, as_yaml(again))


async def _train_from(
    cast: Cast, workshop: Workshop, view: View, start: Start, ending: Ending | None
) -> list[dict[str, float]]:
    config = workshop.config
    tracker = build_tracker(
        config.tracking,
        workshop.run_dir,
        asdict_plain(config),
        after_step=start.after_step,
    )
    with closing(tracker), explained(config):
        recording = Recording(config, tracker, view)
        controller = await make_controller(workshop, cast, recording, view, start)
        learner = controller.parts.learner
        checkpoints = Checkpointer(config, learner, as_yaml(config), cast.progress)
        history = list(start.history)
        try:
            if start.resumed:
                await controller.resume(start.state)
            else:
                history.append(await controller.start())
            cast.incidents.ended("learner")
            for step in range(start.step + 1, config.steps + 1):
                history.append(await controller.step(step))
                early = controller.guards.ending or (ending.stopped if ending else None)
                state = controller.state_dict()
                await checkpoints.after(step, state, history[-1], now=early is not None)
                if early is not None:
                    await checkpoints.finish()
                    raise early
            if config.checkpoint.export_at_end:
                await learner.export(workshop.run_dir / "export")
            await checkpoints.finish()
        finally:
            await checkpoints.close()
            await controller.close()
    return history


@contextmanager
def explained(config: RunConfig) -> Generator[None]:
    """Say what to do when a disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ResourceError(
            f"no room to write {error.filename or 'a file of the run'}: {error.strerror}; the "
            f"checkpoints in {store_of(config).url} are as they were: make room and continue with "
            "resume=auto"
        ) from error


async def make_controller(
    workshop: Workshop, cast: Cast, recording: Recording, view: View, start: Start = ANEW
) -> Controller:
    """Start all roles, the rollout workers while the learner warm-starts."""
    config = workshop.config
    # Any model of the policy's shape serves vLLM to start with, unless adapters alone will follow.
    at_once = not (config.model.lora.by_itself and config.warmstart.steps)
    early = asyncio.ensure_future(cast.rollouts(workshop.model_folder)) if at_once else None
    verifying = asyncio.ensure_future(cast.rewards())
    try:
        learner = await cast.learners()
        await learner.check_run_dir(workshop.run_dir, config.learner.start_timeout_s)
        folder = await prepare_policy(workshop, learner, view, start)
        reference = await cast.reference(folder)
        await load_learner(learner, config, folder, start.url)
        rewards = await verifying
        rollouts = await (early or cast.rollouts(folder))
    except BaseException:
        started = [task for task in (early, verifying) if task]
        for task in started:
            task.cancel()
        await asyncio.gather(*started, return_exceptions=True)
        raise
    learner.attach(rollouts)
    evaluator = workshop.evaluator(rollouts, rewards)
    parts = Parts(
        prompts=workshop.stream(),
        rollouts=rollouts,
        verifiers=rewards,
        learner=learner,
        reference=reference,
    )
    guards = Guards(config)
    guards.report("eval_overlap", workshop.overlap)
    guards.remember(start.history)
    controller = Controller(
        config,
        parts,
        evaluator,
        recording,
        guards=guards,
        vitals=cast.vitals,
        progress=cast.progress,
    )
    cast.witnesses["Episodes"] = lambda: queues(controller.buffer)
    return controller


async def load_learner(
    learner: LearnerGroup, config: RunConfig, folder: Path, checkpoint: str | None
) -> None:
    """Load the policy of `folder` for training, and on top of it a checkpoint's state, if any.

    Raises:
        CheckpointError: the checkpoint, a URL, does not fit the learner group.
    """
    await learner.load(folder, training_phase(config), config.learner.start_timeout_s)
    if checkpoint is not None:
        await learner.restore(checkpoint, config.learner.start_timeout_s)


async def prepare_policy(
    workshop: Workshop, learner: LearnerGroup, view: View, start: Start = ANEW
) -> Path:
    """Return the folder to train from, after a warm start where the recipe has one."""
    config = workshop.config
    if not config.warmstart.steps:
        return workshop.model_folder
    folder = workshop.run_dir / "warmstart"
    if start.keeps_warmstart and (folder / "config.json").is_file():
        view.message(f"the warm start of {folder} is kept")
        return folder
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
