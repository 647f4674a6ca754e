"""A learner rank's state, copied into memory at once and written in the background."""

import json
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlpost.checkpoints.manifest import FileEntry, entries
from rlpost.checkpoints.randomness import rng_state, set_rng_state
from rlpost.checkpoints.store import files_under, local_copy
from rlpost.errors import CheckpointError

LEARNER = "learner"
_TAG = "deepspeed"


class MemoryEngine:
    """DeepSpeed's `CheckpointEngine`: what it is told to save is copied and kept in `files`.

    It does not inherit from DeepSpeed's class, so that the driver need not import DeepSpeed.
    What it loads are torch's files without arbitrary pickles: tensors and plain values only.
    """

    name = "rlpost"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, Any] = {}

    def save(self, state_dict: Any, path: str) -> None:
        """Copy one file's content."""
        self.files[Path(path).relative_to(self.folder).as_posix()] = copied(state_dict)

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read one file."""
        with torch.serialization.safe_globals(_known_classes()):
            return torch.load(path, map_location=map_location, weights_only=True)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:  # noqa: FBT001, FBT002 - its form
        """Make a folder, for what DeepSpeed writes past its engine: scripts that we leave out."""
        Path(path).mkdir(parents=True, exist_ok=exist_ok)

    def create(self, info: Any) -> None:
        """Do nothing: a checkpoint begins when its files are written."""

    def commit(self, info: Any) -> bool:
        """Agree; the manifest is what commits."""
        del info
        return True

    def is_data_parallel_writer(self, dp_rank: int) -> bool:
        """Return whether this rank writes what all have."""
        return dp_rank == 0

    def is_decoupled(self) -> bool:
        """Return False: DeepSpeed has nothing to wait for."""
        return False

    def preserves_storage_sharing(self) -> bool:
        """Return False: copies share nothing."""
        return False

    def cleanup(self) -> None:
        """Do nothing."""


def _known_classes() -> list[Any]:
    """Return the classes beside tensors and plain values that DeepSpeed's states hold."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]


def copied(value: Any) -> Any:
    """Return a deep copy with all tensors on the CPU, none sharing memory with anything."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: copied(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(copied(inner) for inner in value)
    return value


class Snapshots:
    """Writes a rank's snapshots, one at a time.

    Use: `take(engine, rank, url, also)`, then `written()` until it is not None.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._writing: Future[list[FileEntry]] | None = None

    def take(
        self, engine: Any, rank: int, url: str, also: Callable[[Path], None] | None = None
    ) -> None:
        """Copy the engine's state and begin to write it under `url`, and what `also` writes there.

        A collective: every rank takes part.
        """
        if self._writing is not None:  # left by a driver that has given up on it
            wait([self._writing])
        with tempfile.TemporaryDirectory(prefix="rlpost-snapshot-") as name:
            memory = engine.checkpoint_engine = MemoryEngine(Path(name))
            engine.save_checkpoint(name, tag=_TAG, save_latest=False)
        # DeepSpeed keeps its engine; the copy is to be gone once it is written.
        files, memory.files = memory.files, {}
        self._writing = self._pool.submit(_write, url, rank, files, json.dumps(rng_state()), also)

    def written(self) -> list[FileEntry] | None:
        """Return what the last snapshot has written, None while it is still at it.

        Raises:
            CheckpointError: it could not be written.
        """
        assert self._writing is not None, "take() comes before written()"
        if not self._writing.done():
            return None
        writing, self._writing = self._writing, None
        error = writing.exception()
        if error is not None:
            raise CheckpointError(f"a snapshot could not be written: {error}") from None
        return writing.result()


def _write(
    url: str,
    rank: int,
    files: Mapping[str, Any],
    random_state: str,
    also: Callable[[Path], None] | None,
) -> list[FileEntry]:
    """Write one rank's files and return their entries, as the checkpoint sees them."""
    found: list[FileEntry] = []
    folders: list[tuple[str, Callable[[Path], None]]] = [
        (f"{LEARNER}/rank_{rank}", lambda folder: _write_states(folder, files, random_state))
    ]
    if also is not None:
        folders.append(("export", also))
    for name, write in folders:
        with files_under(f"{url}/{name}") as folder:
            write(folder)
            found += [entry.under(name) for entry in entries(folder)]
    return found


def _write_states(folder: Path, files: Mapping[str, Any], random_state: str) -> None:
    for name, state in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path)
    (folder / "rng.json").write_text(random_state, encoding="utf-8")


def restore(engine: Any, rank: int, num_ranks: int, url: str) -> None:
    """Load into a fresh engine what `Snapshots` wrote; a collective.

    Raises:
        CheckpointError: it does not fit this engine.
    """
    with local_copy(url, LEARNER) as folder, tempfile.TemporaryDirectory() as name:
        together = Path(name, _TAG)  # DeepSpeed looks for every rank's files in one folder
        together.mkdir()
        for path in (p for r in range(num_ranks) for p in (folder / f"rank_{r}" / _TAG).glob("*")):
            (together / path.name).symlink_to(path.resolve())
        engine.checkpoint_engine = MemoryEngine(Path(name))
        loaded, _ = engine.load_checkpoint(name, tag=_TAG)
        if loaded is None:
            raise CheckpointError(f"{url}: DeepSpeed finds no state for rank {rank} in it")
        text = (folder / f"rank_{rank}" / "rng.json").read_text(encoding="utf-8")
    set_rng_state(json.loads(text))
