"""The disks of this machine that a run writes to: what is free on each, and what has to be."""

import shutil
from functools import cache
from pathlib import Path

from fsspec.core import split_protocol

from rlpost.guards.journal import Journal
from rlpost.schema import RunConfig

_GIB = 2**30
_CHECKPOINTS = 1.5  # times the newest checkpoint that must fit on the disk
_RUN, _CHECKPOINT = "disk/free_gib", "disk/checkpoint_free_gib"


def free_gib(config: RunConfig) -> dict[str, float]:
    """Return `disk/free_gib`, and `disk/checkpoint_free_gib` where checkpoints are on another."""
    run, checkpoints = _there(Path(config.run_dir)), _local(config)
    free = {_RUN: _free_gib(run)}
    if checkpoints is not None:
        checkpoints = _there(checkpoints)
        if checkpoints.stat().st_dev != run.stat().st_dev:
            free[_CHECKPOINT] = _free_gib(checkpoints)
    return free


def low_disk(journal: Journal, config: RunConfig) -> str | None:
    """Say which disk is nearly full, if one is."""
    checkpoints = _local(config)
    apart = journal.now(_CHECKPOINT) is not None
    needed = _CHECKPOINTS * _newest_gib(checkpoints) if checkpoints is not None else 0.0
    disks = [(_RUN, f"run_dir={config.run_dir}", 0.0 if apart else needed)]
    disks.append((_CHECKPOINT, f"checkpoint.url={config.checkpoint.url}", needed))
    for metric, field, size_gib in disks:
        free, limit = journal.now(metric), max(config.guards.min_free_gib, size_gib)
        if free is not None and free < limit:
            return (
                f"{free:.2f} GiB are free on the disk of {field}, less than {limit:.2f} GiB "
                f"(guards.min_free_gib, or {_CHECKPOINTS:g} times the newest checkpoint): make "
                "room, lower checkpoint.keep, or set tracking.rollouts_every higher; then resume"
            )
    return None


def _local(config: RunConfig) -> Path | None:
    """Return the folder of checkpoints, None if it is not on this machine."""
    protocol, path = split_protocol(config.checkpoint.url or f"{config.run_dir}/checkpoints")
    return Path(path).expanduser() if protocol in (None, "file", "local") else None


def _there(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def _free_gib(folder: Path) -> float:
    return shutil.disk_usage(folder).free / _GIB


def _newest_gib(folder: Path) -> float:
    newest = max(folder.glob("step_*"), default=None)
    return 0.0 if newest is None else _size_gib(newest)


@cache
def _size_gib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / _GIB
