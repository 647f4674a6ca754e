"""Files and folders that appear whole or not at all.

Both are written under a temporary name beside their place, flushed to disk and renamed. The writer
of a folder holds a lock on it, which the kernel releases when the writer dies: so a leftover of a
dead writer can be told from work in progress, on this host or another, and removed.
"""

import fcntl
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

_PREFIX = ".incomplete-"


@contextmanager
def atomic_file(path: Path) -> Generator[Path]:
    """Yield a temporary path to write; it takes the place of `path` when the block succeeds."""
    temporary = _temporary(path)
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False) -> Generator[Path]:
    """Yield an empty temporary folder to fill; it becomes `path` when the block succeeds.

    Other processes may write into it too, as long as they are done before the block ends. A folder
    that is overwritten stays in place until the new one is complete.

    Raises:
        FileExistsError: `path` exists and `overwrite` is not set.
    """
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already: remove it or choose another folder")
    temporary = _temporary(path)
    temporary.mkdir(parents=True)
    lock = _lock(temporary)
    assert lock is not None, f"{temporary} was made a moment ago and is locked by another process"
    try:
        yield temporary
        _flush_tree(temporary)
        _put_in_place(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove and return what writers that died left unfinished in `folder`."""
    removed: list[Path] = []
    for leftover in sorted(folder.glob(f"{_PREFIX}*")):
        lock = _lock(leftover)
        if lock is None:
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)
        os.close(lock)
        removed.append(leftover)
    return removed


def _temporary(path: Path) -> Path:
    return path.with_name(f"{_PREFIX}{path.name}-{uuid4().hex[:8]}")


def _lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock on `path`, or None when another process does."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _put_in_place(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path`; an older folder there is moved aside first, then removed."""
    old = _temporary(path)
    if path.exists():
        path.rename(old)
    temporary.rename(path)
    _flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _flush_tree(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            _flush(Path(parent, name))
        _flush(Path(parent))


def _flush(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
