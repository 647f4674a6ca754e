"""One reward worker: verifies trajectories in processes of its own."""

import asyncio
from collections.abc import Sequence

from rlpost.schema import RunConfig
from rlpost.stalls.stack_signal import answer_signal
from rlpost.stalls.stacks import tasks
from rlpost.tasks.verification import VerifierPool
from rlpost.types import Prompt, Trajectory, Verdict


class RewardWorker:
    """Use: `start()`, any number of overlapping `verify(...)`, `close()`."""

    def __init__(self, config: RunConfig, index: int) -> None:
        answer_signal()
        self.name = f"reward-{index}"
        reward = config.reward
        self.pool = VerifierPool(
            config.task.verifier,
            reward.num_processes,
            reward.timeout_s,
            reward.process_memory_gib,
        )

    async def start(self) -> None:
        """Start the verifier's processes."""
        await self.pool.start()

    async def pulse(self) -> None:
        """Give a sign of life."""

    async def verify(self, prompt: Prompt, trajectories: Sequence[Trajectory]) -> list[Verdict]:
        """Return one verdict a trajectory, in order."""
        return await self.pool.verify(prompt, trajectories)

    async def situation(self) -> tuple[str, str]:
        """Say what is verified and what waits here, and where its tasks wait."""
        return self.pool.situation(), tasks(asyncio.get_running_loop())

    async def close(self) -> None:
        """Kill the verifier's processes."""
        await self.pool.close()
