"""Where checkpoints lie: whole or not at all, verified before use, the newest and the best kept.

A checkpoint is a folder `step_000012` under a local path or any fsspec URL. On a local disk it
appears by a rename after all of it is flushed; in an object store its manifest comes last. Either
way it is complete when its manifest is there and every file is as the manifest says.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from rlpost.atomic import atomic_folder, remove_leftovers
from rlpost.checkpoints import manifest
from rlpost.checkpoints.manifest import FileEntry, Manifest
from rlpost.errors import CheckpointError

log = logging.getLogger(__name__)

_PREFIX = "step_"
_ASIDE = "set_aside_"
_SPARE = 1.1  # a checkpoint may grow a little


class CheckpointStore:
    """The checkpoints of one run.

    Use: `with store.writing(step) as url:` have everything written under `url` (with
    `files_under`), then `commit(...)` in the block; `newest()` to continue; `prune(...)`.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.files, self.root = url_to_fs(self.url)
        self.local = isinstance(self.files, LocalFileSystem)

    def steps(self) -> list[int]:
        """Return the steps that have a folder, complete or not, in order."""
        if not self.files.isdir(self.root):
            return []
        names = [str(path).rsplit("/", 1)[-1] for path in self.files.ls(self.root, detail=False)]
        found = [name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX)]
        return sorted(int(digits) for digits in found if digits.isdigit())

    def place(self, step: int) -> str:
        """Return the URL of a step's checkpoint."""
        return f"{self.url}/{_name(step)}"

    @contextmanager
    def writing(self, step: int) -> Generator["Writing"]:
        """Yield where to write a checkpoint; it is there when the block succeeds."""
        if not self.local:
            yield Writing(self.place(step))
            return
        with atomic_folder(Path(self.root, _name(step)), overwrite=True) as temporary:
            yield Writing(str(temporary))

    def read(self, step: int) -> Manifest:
        """Return a checkpoint's manifest.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        try:
            data: bytes = self.files.cat_file(f"{self.root}/{_name(step)}/{manifest.NAME}")
        except OSError as error:
            raise CheckpointError(f"{manifest.NAME} cannot be read: {error}") from None
        found = manifest.read(data)
        if found.step != step:
            raise CheckpointError(f"{manifest.NAME} is that of step {found.step}")
        return found

    def verify(self, step: int) -> Manifest:
        """Read a whole checkpoint and return its manifest.

        Raises:
            CheckpointError: something is missing or not as it was written; the message says what.
        """
        found = self.read(step)
        check_files(self.files, f"{self.root}/{_name(step)}", found.files)
        return found

    def newest(self) -> Manifest | None:
        """Return the manifest of the newest complete checkpoint, None where there is no folder.

        A damaged one is told and passed over.

        Raises:
            CheckpointError: there are checkpoints, and none is complete.
        """
        reasons: list[str] = []
        for step in reversed(self.steps()):
            try:
                return self.verify(step)
            except CheckpointError as error:
                reasons.append(f"step {step}: {error}")
                log.warning(
                    "CHECKPOINT OF STEP %d IS DAMAGED and is not used: %s; falling back to the one "
                    "before it",
                    step,
                    error,
                )
        if reasons:
            raise CheckpointError(
                f"no checkpoint in {self.url} is complete ({'; '.join(reasons)}): restore one, or "
                "start anew in another run_dir"
            )
        return None

    def _set_aside(self, step: int) -> None:
        """Rename a checkpoint so that it is neither used nor counted; people may still look."""
        source, target = f"{self.root}/{_name(step)}", f"{self.root}/{_ASIDE}{_name(step)}"
        if self.files.exists(target):
            self.files.rm(target, recursive=True)
        self.files.mv(source, target, recursive=True)

    def forget_after(self, step: int) -> None:
        """Set aside what is newer than the step that a run goes on from; remove unfinished ones."""
        for newer in self.steps():
            if newer > step:
                self._set_aside(newer)
                log.warning(
                    "the checkpoint of step %d is now %s%s: the run goes on from step %d",
                    newer,
                    _ASIDE,
                    _name(newer),
                    max(step, 0),
                )
        if self.local and Path(self.root).is_dir():
            remove_leftovers(Path(self.root))

    def prune(self, keep: int, best: str | None = None, *, largest: bool = True) -> None:
        """Remove all but the `keep` newest and the one with the best value of a metric."""
        steps = self.steps()
        kept = set(steps[-keep:])
        if best is not None:
            values = {
                step: value for step in steps if (value := self._metric(step, best)) is not None
            }
            if values:
                choose = max if largest else min
                top = choose(values.values())
                kept.add(max(step for step, value in values.items() if value == top))
        for step in steps:
            if step not in kept:
                self.files.rm(f"{self.root}/{_name(step)}", recursive=True)

    def _metric(self, step: int, name: str) -> float | None:
        try:
            return self.read(step).metrics.get(name)
        except CheckpointError:
            return None

    def check_room(self) -> None:
        """Notice a nearly full disk before writing.

        Raises:
            CheckpointError: the last checkpoint would not fit once more.
        """
        steps = self.steps()
        if not self.local or not steps:
            return
        needed = int(self.read(steps[-1]).size_bytes * _SPARE)
        free = shutil.disk_usage(self.root).free
        if free < needed:
            raise CheckpointError(
                f"the disk of {self.root} is nearly full: {free / 2**20:.1f} MiB are free and a "
                f"checkpoint takes {needed / 2**20:.1f} MiB; the newest checkpoint, of step "
                f"{steps[-1]}, is complete: make room and continue with resume=auto"
            )


class Writing:
    """A checkpoint on its way; `url` is where its files go."""

    def __init__(self, url: str) -> None:
        self.url = url

    def commit(self, content: Manifest) -> None:
        """Write the manifest, which makes the checkpoint complete."""
        unsafe = manifest.unsafe(entry.path for entry in content.files)
        assert unsafe is None, f"a file outside the checkpoint: {unsafe}"
        files, root = url_to_fs(self.url)
        files.pipe_file(f"{root}/{manifest.NAME}", content.to_json().encode())


@contextmanager
def files_under(url: str) -> Generator[Path]:
    """Yield a local folder to fill; its files are on disk under `url` when the block succeeds.

    Several processes may fill the same `url` at once, each its own files.
    """
    files, root = url_to_fs(url)
    if isinstance(files, LocalFileSystem):
        Path(root).mkdir(parents=True, exist_ok=True)
        yield Path(root)
        return
    with tempfile.TemporaryDirectory(prefix="rlpost-checkpoint-") as name:
        folder = Path(name)
        yield folder
        for path in _files_of(folder):
            target = f"{root}/{path.relative_to(folder).as_posix()}"
            files.makedirs(target.rpartition("/")[0], exist_ok=True)
            files.put_file(str(path), target)


@contextmanager
def local_copy(url: str, part: str) -> Generator[Path]:
    """Yield a local folder with one part of a complete checkpoint: itself, or a verified copy.

    Raises:
        CheckpointError: what arrived is not what the manifest says.
    """
    files, root = url_to_fs(url)
    if isinstance(files, LocalFileSystem):
        yield Path(root, part)
        return
    content = manifest.read(files.cat_file(f"{root}/{manifest.NAME}"))
    entries = [entry for entry in content.files if entry.path.startswith(f"{part}/")]
    with tempfile.TemporaryDirectory(prefix="rlpost-checkpoint-") as name:
        for entry in entries:
            target = Path(name, entry.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(f"{root}/{entry.path}", str(target))
        check_files(LocalFileSystem(), name, entries)
        yield Path(name, part)


def check_files(files: Any, root: str, entries: Sequence[FileEntry]) -> None:
    """Compare files with their entries.

    Raises:
        CheckpointError: one is missing, or is not what was written.
    """
    bad = manifest.unsafe(entry.path for entry in entries)
    if bad is not None:
        raise CheckpointError(f"{manifest.NAME} names a file outside the checkpoint: {bad}")
    for entry in entries:
        try:
            with files.open(f"{root}/{entry.path}", "rb") as file:
                checksum, size = manifest.digest_of(file)
        except OSError:
            raise CheckpointError(f"{entry.path} is missing") from None
        if size != entry.size_bytes:
            raise CheckpointError(f"{entry.path} has {size} bytes, not {entry.size_bytes}")
        if checksum != entry.checksum:
            raise CheckpointError(f"{entry.path} has been altered: its checksum is another")


def _files_of(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in sorted(names))


def _name(step: int) -> str:
    return f"{_PREFIX}{step:06d}"
