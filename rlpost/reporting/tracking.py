"""Where metrics go: always `metrics.jsonl`, and W&B or TensorBoard where a recipe says so."""

import json
import logging
import math
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol
from uuid import uuid4

from rlpost import atomic
from rlpost.errors import ConfigError
from rlpost.schema import TrackingConfig, WandbConfig

log = logging.getLogger(__name__)

WANDB_ID = "wandb_id"  # the file in a run directory that names its W&B run


class Tracker(Protocol):
    """Keeps one line of metrics a step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the metrics of one step."""
        ...

    def close(self) -> None:
        """Write what is still in memory and let go of files and processes."""
        ...


class JsonlTracker:
    """Appends one JSON object a step to a file and flushes it.

    A value that is not finite becomes null and is listed under `nonfinite`, so that the line stays
    JSON and the fact stays visible.
    """

    def __init__(self, path: Path, *, after_step: int | None = None) -> None:
        """Continue `path`; lines of steps after `after_step`, to be run again, are dropped."""
        path.parent.mkdir(parents=True, exist_ok=True)
        _mend(path, after_step)
        self._file = path.open("a", encoding="utf-8")
        self._warned: set[str] = set()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line."""
        bad = {name: repr(value) for name, value in values.items() if not math.isfinite(value)}
        line: dict[str, Any] = {"step": step, "unix_s": round(time.time(), 3)}
        line |= {name: None if name in bad else value for name, value in values.items()}
        if bad:
            line["nonfinite"] = bad
            for name in sorted(bad.keys() - self._warned):
                log.warning("step %d: %s is %s", step, name, bad[name])
            self._warned |= bad.keys()
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class WandbTracker:
    """A W&B run; offline mode needs no account. A resumed run directory continues its run.

    W&B cannot take back a step: those that it had before the run was interrupted, which
    `run_dir/wandb_step` tells, are not handed over again.
    """

    def __init__(self, config: WandbConfig, run_dir: Path, run_config: Mapping[str, Any]) -> None:
        self._step_file = run_dir / "wandb_step"
        known = self._step_file.read_text() if self._step_file.exists() else ""
        self._logged_step = int(known) if known.isdigit() else -1
        wandb = optional_module("wandb", "tracking.wandb.enabled=true", extra="wandb")
        id_file = run_dir / WANDB_ID
        if not id_file.exists():
            atomic.write_text(id_file, uuid4().hex[:8])
        self._run: Any = wandb.init(
            project=config.project,
            entity=config.entity,
            group=config.group,
            mode=config.mode,
            name=run_dir.name,
            id=id_file.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(run_dir),
            config=dict(run_config),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand one step's metrics to W&B's own process."""
        if step > self._logged_step:
            self._run.log(dict(values), step=step)
            self._step_file.write_text(str(step))

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class TensorBoardTracker:
    """TensorBoard event files in `run_dir/tensorboard`.

    TensorBoard forgets what earlier files say of steps after `after_step`.
    """

    def __init__(self, folder: Path, *, after_step: int | None = None) -> None:
        optional_module("tensorboard", "tracking.tensorboard=true", extra="tensorboard")
        writer = import_module("torch.utils.tensorboard").SummaryWriter
        purge_step = None if after_step is None else after_step + 1
        self._writer: Any = writer(log_dir=str(folder), purge_step=purge_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one step's scalars and flush them."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class CompositeTracker:
    """Several trackers, none of which can stop a run.

    A tracker that raises is reported once and tried again at the next step; `failures` counts.
    """

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self.trackers = dict(trackers)
        self.failures = dict.fromkeys(trackers, 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand one step's metrics to each tracker, with the number of failures so far, if any."""
        failed = {f"tracking/{name}_failures": float(n) for name, n in self.failures.items() if n}
        for name, tracker in self.trackers.items():
            try:
                tracker.log(step, {**values, **failed})
            except Exception as error:  # noqa: BLE001 - a tracker's library may raise anything
                self._failed(name, error)

    def close(self) -> None:
        """Close each tracker."""
        for name, tracker in self.trackers.items():
            try:
                tracker.close()
            except Exception as error:  # noqa: BLE001 - likewise
                self._failed(name, error)

    def _failed(self, name: str, error: Exception) -> None:
        self.failures[name] += 1
        if self.failures[name] == 1:
            log.warning(
                "tracker %s failed (%s: %s); the run goes on and further failures are counted in "
                "tracking/%s_failures",
                name,
                type(error).__name__,
                error,
                name,
            )


def build_tracker(
    config: TrackingConfig,
    run_dir: Path,
    run_config: Mapping[str, Any],
    *,
    after_step: int | None = None,
) -> CompositeTracker:
    """Return the trackers that a recipe asks for.

    Args:
        config: which they are.
        run_dir: where files go.
        run_config: what W&B shows as the run's configuration.
        after_step: the step resumed from, -1 when a directory is used anew; None is the first use.

    Raises:
        ConfigError: a tracker's package is not installed.
    """
    trackers: dict[str, Tracker] = {}
    if config.tensorboard:
        trackers["tensorboard"] = TensorBoardTracker(run_dir / "tensorboard", after_step=after_step)
    if config.wandb.enabled:
        try:
            trackers["wandb"] = WandbTracker(config.wandb, run_dir, run_config)
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001 - no network, no account: never a reason to stop
            log.warning("W&B did not start (%s: %s); going on without", type(error).__name__, error)
    trackers["jsonl"] = JsonlTracker(run_dir / "metrics.jsonl", after_step=after_step)
    return CompositeTracker(trackers)


def optional_module(name: str, asked_by: str, *, extra: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Raises:
        ConfigError: the package is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ConfigError(
            f"{asked_by} needs the package {name}, which is not installed: "
            f"pip install 'rlpost[{extra}]'"
        ) from None


def _mend(path: Path, after_step: int | None) -> None:
    """Drop a torn last line and, where a run resumes, lines of steps that it will run again."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    if after_step is not None:
        lines = [line for line in lines if json.loads(line)["step"] <= after_step]
    if "".join(lines) != text:
        atomic.write_text(path, "".join(lines))
