"""Where a run begins: anew, or after the step of a complete checkpoint."""

import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlpost import atomic
from rlpost.checkpoints.manifest import Manifest, library_versions
from rlpost.checkpoints.randomness import rng_state, set_rng_state
from rlpost.checkpoints.recipe_changes import changes, is_free, refuse
from rlpost.checkpoints.store import CheckpointStore, local_copy
from rlpost.choices import LrSchedule
from rlpost.errors import CheckpointError, ConfigError
from rlpost.reporting.tracking import WANDB_ID
from rlpost.schema import RunConfig

log = logging.getLogger(__name__)

DRIVER = "driver"
_STEP = re.compile(r"(.+)/step_(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a run begins; without a checkpoint `step` is 0 and all else empty.

    `url` is the checkpoint's place, `state` the controller's, `history` each step's metrics.
    `after_step` is None in a fresh directory, -1 in one that is used anew.
    `keeps_warmstart` says that a warm start found in the run directory is this recipe's.
    """

    url: str | None = None
    step: int = 0
    state: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[dict[str, float], ...] = ()
    after_step: int | None = None
    keeps_warmstart: bool = False

    @property
    def resumed(self) -> bool:
        """Whether a checkpoint is continued."""
        return self.url is not None


ANEW = Start()


def store_of(config: RunConfig) -> CheckpointStore:
    """Return where a run keeps its checkpoints."""
    return CheckpointStore(config.checkpoint.url or f"{config.run_dir}/checkpoints")


def find_start(config: RunConfig, recipe: str) -> Start:
    """Return where the run begins, and make its directory fit for that.

    Args:
        config: what is asked for; `resume` says from where.
        recipe: the same, resolved, as YAML.

    Raises:
        ConfigError: the directory holds another run, the recipe differs, or there is nothing to
            continue where a path was given.
        CheckpointError: there are checkpoints and none is complete.
    """
    run_dir, store = Path(config.run_dir), store_of(config)
    if config.resume == "never":
        _refuse_used(run_dir, store)
        return ANEW
    source, found = _chosen(config, store)
    if found is None:
        log.info("resume=%s: no checkpoint in %s: starting anew", config.resume, store.url)
        store.forget_after(-1)
        (run_dir / "metrics.jsonl").unlink(missing_ok=True)
        return Start(after_step=-1, keeps_warmstart=_same_recipe(run_dir, config, recipe))
    start = _continued(config, recipe, source, found)
    store.forget_after(found.step)
    return start


def _refuse_used(run_dir: Path, store: CheckpointStore) -> None:
    steps = store.steps()
    if steps or _last_step(run_dir / "metrics.jsonl") >= 0:
        what = f"checkpoints up to step {steps[-1]}" if steps else "metrics.jsonl"
        raise ConfigError(
            f"run_dir={run_dir} holds a run already ({what}), and resume=never would overwrite "
            "it: continue it with resume=auto, or choose another run_dir"
        )


def _chosen(config: RunConfig, own: CheckpointStore) -> tuple[CheckpointStore, Manifest | None]:
    """Return the checkpoint that `resume` names, and where it lies."""
    if config.resume == "auto":
        return own, own.newest()
    path = config.resume.rstrip("/")
    if named := _STEP.fullmatch(path):
        store, step = CheckpointStore(named[1]), int(named[2])
        try:
            return store, store.verify(step)
        except CheckpointError as error:
            raise CheckpointError(f"resume={config.resume}: {error}") from None
    for url in (f"{path}/checkpoints", path):
        store = CheckpointStore(url)
        if found := store.newest():
            return store, found
    raise ConfigError(
        f"resume={config.resume}: no checkpoint there: name auto, never, a run directory, a folder "
        "of checkpoints, or one of them"
    )


def _continued(config: RunConfig, recipe: str, source: CheckpointStore, found: Manifest) -> Start:
    url = source.place(found.step)
    with local_copy(url, DRIVER) as folder:
        _compare(config, (folder / "config.yaml").read_text(encoding="utf-8"), recipe)
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    if found.step > config.steps:
        raise ConfigError(
            f"{url} is of step {found.step}, and steps={config.steps}: raise steps, or name an "
            "earlier checkpoint with resume"
        )
    different = {
        name: f"{found.versions.get(name, 'none')} -> {version}"
        for name, version in library_versions().items()
        if found.versions.get(name) != version
    }
    if different:
        log.warning("other versions than the checkpoint's, so bits may differ: %s", different)
    Path(config.run_dir).mkdir(parents=True, exist_ok=True)
    atomic.write_text(Path(config.run_dir, "metrics.jsonl"), lines)
    wandb_id = Path(config.run_dir, WANDB_ID)
    if config.resume == "auto" and state["wandb_id"] and not wandb_id.exists():  # a new disk
        atomic.write_text(wandb_id, state["wandb_id"])
    set_rng_state(state["rng"])
    log.info("continuing after step %d from %s", found.step, url)
    return Start(
        url=url,
        step=found.step,
        state=state["controller"],
        history=tuple(_values(line) for line in lines.splitlines()),
        after_step=found.step,
        keeps_warmstart=True,
    )


def _compare(config: RunConfig, before: str, now: str) -> None:
    """Refuse or list what differs."""
    scheduled = config.learner.lr_schedule is not LrSchedule.constant
    found = changes(before, now)
    refuse(found, config.resume_allow_changes, scheduled=scheduled)
    for change in found:
        if change.field not in ("resume", "resume_allow_changes"):
            log.info("the recipe changes as allowed: %s", change)


def _same_recipe(run_dir: Path, config: RunConfig, recipe: str) -> bool:
    """Return whether what lies in the run directory was made with this recipe."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        return False
    found = changes(path.read_text(encoding="utf-8"), recipe)
    scheduled = config.learner.lr_schedule is not LrSchedule.constant
    return all(is_free(change.field, scheduled=scheduled) for change in found)


def driver_files(config: RunConfig, recipe: str, state: Mapping[str, Any]) -> dict[str, str]:
    """Return the driver's part of a checkpoint by file name, as of now."""
    metrics = Path(config.run_dir, "metrics.jsonl")
    wandb_id = Path(config.run_dir, WANDB_ID)
    content = {
        "controller": state,
        "rng": rng_state(),
        "wandb_id": wandb_id.read_text(encoding="utf-8") if wandb_id.is_file() else None,
    }
    return {
        "config.yaml": recipe,
        "state.json": json.dumps(content),
        "metrics.jsonl": metrics.read_text(encoding="utf-8") if metrics.exists() else "",
    }


def complete_export(config: RunConfig, url: str) -> None:
    """Give a finished run the export that it asked for, from its last checkpoint."""
    target = Path(config.run_dir, "export")
    if config.checkpoint.export_at_end and not (target / "config.json").is_file():
        with local_copy(url, "export") as folder, atomic.atomic_folder(target) as temporary:
            shutil.copytree(folder, temporary, dirs_exist_ok=True)


def newest_of(run_dir: Path) -> Path | None:
    """Return the newest complete checkpoint in a run directory, None without any."""
    store = CheckpointStore(str(run_dir / "checkpoints"))
    found = store.newest()
    return None if found is None else Path(store.place(found.step))


def _last_step(metrics: Path) -> int:
    """Return the last step that a run recorded, -1 for none."""
    if not metrics.is_file():
        return -1
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    return max((int(json.loads(line)["step"]) for line in whole), default=-1)


def _values(line: str) -> dict[str, float]:
    content = json.loads(line)
    content.pop("nonfinite", None)
    return {
        name: float("nan") if value is None else value
        for name, value in content.items()
        if name not in ("step", "unix_s")
    }
