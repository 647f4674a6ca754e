"""Verification under a time limit, in child processes that can be killed."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from rlpost.errors import DeadlineError
from rlpost.types import Prompt, Trajectory, Verdict

_START_LIMIT_S = 600.0


class VerifierProcess:
    """One child process; started at first use, and again after it was killed or died."""

    def __init__(self, verifier: str, timeout_s: float) -> None:
        self.verifier = verifier
        self.timeout_s = timeout_s
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the child and wait until it has loaded the verifier.

        Raises:
            DeadlineError: it was not ready in time, or ended at once.
        """
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "rlpost.tasks.verify_process",
            self.verifier,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        )
        try:
            async with asyncio.timeout(_START_LIMIT_S):
                ready = await self._read_line()
        except TimeoutError:
            ready = None
        if ready is None:
            await self.close()
            raise DeadlineError(
                f"the process for task.verifier={self.verifier} was not ready within "
                f"{_START_LIMIT_S:g} s, or ended; its error output is in the reward worker's log"
            )

    async def verify(self, prompt: Prompt, trajectory: Trajectory) -> Verdict:
        """Return the verdict on one trajectory, within the time limit."""
        if self._process is None:
            await self.start()
        request = {
            "response": trajectory.text,
            "answer": prompt.answer,
            "metadata": dict(prompt.metadata),
        }
        try:
            async with asyncio.timeout(self.timeout_s):
                answer = await self._ask(json.dumps(request))
        except TimeoutError:
            await self.close()
            detail = f"no verdict within reward.timeout_s={self.timeout_s:g}"
            return Verdict(reward=None, status="timeout", detail=detail)
        if answer is None:
            code = await self.close()
            detail = f"the verifier's process ended with exit code {code}"
            return Verdict(reward=None, status="error", detail=detail)
        return Verdict(
            reward=answer["reward"],
            parts=answer.get("parts", {}),
            status=answer["status"],
            detail=answer.get("detail", ""),
        )

    async def _ask(self, line: str) -> dict[str, Any] | None:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(line.encode() + b"\n")
            await self._process.stdin.drain()
        return await self._read_line()

    async def _read_line(self) -> dict[str, Any] | None:
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    async def close(self) -> int | None:
        """Kill the child and return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return None
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        return await process.wait()


class VerifierPool:
    """Several processes for one verifier; each verifies one trajectory at a time.

    Use: `await start()`, any number of overlapping `await verify(...)`, `await close()`.
    """

    def __init__(self, verifier: str, num_processes: int, timeout_s: float) -> None:
        self._processes = [VerifierProcess(verifier, timeout_s) for _ in range(num_processes)]
        self._idle: asyncio.Queue[VerifierProcess] = asyncio.Queue()

    async def start(self) -> None:
        """Start all processes."""
        await asyncio.gather(*(process.start() for process in self._processes))
        for process in self._processes:
            self._idle.put_nowait(process)

    async def verify(self, prompt: Prompt, trajectories: Sequence[Trajectory]) -> list[Verdict]:
        """Return one verdict a trajectory, in order."""
        return await asyncio.gather(*(self._one(prompt, each) for each in trajectories))

    async def _one(self, prompt: Prompt, trajectory: Trajectory) -> Verdict:
        process = await self._idle.get()
        try:
            return await process.verify(prompt, trajectory)
        finally:
            self._idle.put_nowait(process)

    async def close(self) -> None:
        """Kill all processes."""
        await asyncio.gather(*(process.close() for process in self._processes))
