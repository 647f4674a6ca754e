"""Checkpoints of a running training, written while it goes on."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from rlpost.checkpoints.manifest import FileEntry, Manifest, entries, library_versions
from rlpost.checkpoints.resuming import DRIVER, driver_files, store_of
from rlpost.checkpoints.store import CheckpointStore, Writing, files_under
from rlpost.choices import Best
from rlpost.errors import CheckpointError, DeadlineError
from rlpost.roles import Learner
from rlpost.schema import RunConfig
from rlpost.stalls.progress import Progress

log = logging.getLogger(__name__)


class Checkpointer:
    """Takes checkpoints when their time has come; at most one is being written.

    A step waits only for the copy into memory, and for the checkpoint before if that is still
    being written. A failure to write is raised at the next step, or at the end.

    Use: `await after(step, state, metrics)` after each step, `await finish()` after the last,
    `await close()` however it ends.
    """

    def __init__(
        self, config: RunConfig, learner: Learner, recipe: str, progress: Progress | None = None
    ) -> None:
        """`progress` is told of the checkpoint that is being written."""
        self.config = config
        self.learner = learner
        self.recipe = recipe
        self.progress = progress or Progress()
        self.store: CheckpointStore = store_of(config)
        self._writing: asyncio.Task[None] | None = None

    async def after(
        self,
        step: int,
        state: Mapping[str, Any],
        metrics: Mapping[str, float],
        *,
        now: bool = False,
    ) -> None:
        """Begin a checkpoint of this step if one is due.

        Args:
            step: the step that has just ended.
            state: the controller's.
            metrics: the step's, of which the best may be kept.
            now: whether one is due whatever the recipe says.

        Raises:
            CheckpointError: the one before could not be written, or the disk is nearly full.
        """
        if self._writing is not None and self._writing.done():
            await self.finish()
        every = self.config.checkpoint.every
        due = every and (step % every == 0 or step == self.config.steps)
        if not due and not now:
            return
        await self.finish()
        self.store.check_room()
        started = time.monotonic()
        files = driver_files(self.config, self.recipe, state)
        with ExitStack() as stack:
            writing = stack.enter_context(self.store.writing(step))
            await self.learner.snapshot(writing.url)
            held = stack.pop_all()
        log.debug("step %d: copied into memory in %.3f s", step, time.monotonic() - started)
        self._writing = asyncio.ensure_future(self._write(held, writing, step, files, metrics))

    async def finish(self) -> None:
        """Wait until the checkpoint that is being written is complete.

        Raises:
            CheckpointError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing

    async def close(self) -> None:
        """Give up what is being written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await writing

    async def _write(
        self,
        held: ExitStack,
        writing: Writing,
        step: int,
        files: Mapping[str, str],
        metrics: Mapping[str, float],
    ) -> None:
        started, limit_s = time.monotonic(), self.config.checkpoint.timeout_s
        waiting, what = self.progress.waiting, f"the checkpoint of step {step}"
        try:
            with held as stack:
                with waiting("learner", what, limit_s):
                    async with asyncio.timeout(limit_s):
                        written = await self.learner.written()
                held = stack.pop_all()
            with waiting("driver", what, limit_s):
                await asyncio.to_thread(self._commit, held, writing, step, files, metrics, written)
        except TimeoutError:
            raise DeadlineError(
                f"the learner ranks did not write the checkpoint of step {step} within "
                f"checkpoint.timeout_s={limit_s:g} s"
            ) from None
        except (CheckpointError, OSError) as error:
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written: {error}; those before it in "
                f"{self.store.url} are as they were: continue with resume=auto"
            ) from error
        log.debug("checkpoint of step %d written in %.2f s", step, time.monotonic() - started)

    def _commit(
        self,
        held: ExitStack,
        writing: Writing,
        step: int,
        files: Mapping[str, str],
        metrics: Mapping[str, float],
        written: Sequence[FileEntry],
    ) -> None:
        """Write the driver's part and the manifest, put all in place, remove what is too old."""
        settings = self.config.checkpoint
        with held:
            with files_under(f"{writing.url}/{DRIVER}") as folder:
                for name, text in files.items():
                    (folder / name).write_text(text, encoding="utf-8")
                own = [entry.under(DRIVER) for entry in entries(folder)]
            writing.commit(
                Manifest(
                    step=step,
                    files=[*own, *written],
                    metrics=dict(metrics),
                    versions=library_versions(),
                )
            )
        largest = settings.best is Best.max
        self.store.prune(settings.keep, settings.best_metric, largest=largest)
