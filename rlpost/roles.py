"""The parts that the controller drives, as protocols; they know no word of Ray."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from rlpost.batching import RankBatch
from rlpost.checkpoints.manifest import FileEntry
from rlpost.metrics import Metrics
from rlpost.types import Group, Prompt, Sampling, Trajectory, Verdict


class Prompts(Protocol):
    """Where training prompts come from."""

    def draw(self, count: int) -> list[Prompt]:
        """Return the next prompts of the run's order."""
        ...

    def recall(self, ids: Collection[str]) -> dict[str, Prompt]:
        """Return prompts that were drawn before, by id."""
        ...

    def state_dict(self) -> dict[str, int]:
        """Return the position in the order."""
        ...

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to a position."""
        ...


class Rollouts(Protocol):
    """Samples groups of trajectories from the current policy."""

    async def generate(self, prompt: Prompt, group_size: int, sampling: Sampling) -> Group:
        """Sample one group; calls may overlap, and are spread over the workers by load."""
        ...

    async def weight_versions(self) -> Mapping[str, int]:
        """Return the version of the weights that each worker serves, by worker name."""
        ...


class Verifiers(Protocol):
    """Scores trajectories; several at once, each under a time limit."""

    async def verify(self, prompt: Prompt, trajectories: Sequence[Trajectory]) -> list[Verdict]:
        """Return one verdict a trajectory, in order."""
        ...


class Reference(Protocol):
    """The frozen policy that the KL penalty measures against."""

    async def logprobs(self, trajectories: Sequence[Trajectory]) -> list[tuple[float, ...]]:
        """Return log pi_ref of each trajectory's `token_ids`, at the sampling temperature."""
        ...


class Learner(Protocol):
    """Holds the policy being trained, spread over `num_ranks` processes."""

    num_ranks: int

    async def update(self, batches: Sequence[RankBatch], step: int) -> Metrics:
        """Train on one step's batch, one `RankBatch` a rank, and return merged metrics."""
        ...

    async def publish(self, version: int) -> Mapping[str, float]:
        """Put the current weights into every rollout worker and prove that they arrived.

        Returns metrics of the transfer (`weights/*`).

        Raises:
            WeightSyncError: what a worker holds is not what was sent.
        """
        ...

    async def snapshot(self, url: str) -> None:
        """Copy optimiser, schedule, weights and random numbers; write them in the background."""
        ...

    async def written(self) -> Sequence[FileEntry]:
        """Wait until the last snapshot is written, and return its files.

        Raises:
            CheckpointError: it could not be written.
        """
        ...

    async def export(self, folder: Path) -> None:
        """Write the policy as a folder that transformers can load."""
        ...


class Recorder(Protocol):
    """Where results go: files, trackers, the console."""

    def phase(self, name: str) -> None:
        """Say what is going on."""
        ...

    def record(self, step: int, values: dict[str, float], groups: Sequence[Group]) -> None:
        """Keep one step's metrics and rollouts."""
        ...
