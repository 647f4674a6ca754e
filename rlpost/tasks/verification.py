"""Verification under a time limit, in child processes that can be killed."""

import asyncio
import base64
import contextlib
import json
import os
import pickle
import signal
import sys
from collections.abc import Sequence
from typing import Any

from rlpost.errors import ConfigError, DeadlineError
from rlpost.redaction import secrets_of
from rlpost.tasks.verifiers import BUILT_IN
from rlpost.types import Prompt, Trajectory, Verdict

_START_LIMIT_S = 600.0


class VerifierProcess:
    """One child process; started at first use, and again after it was killed or died."""

    def __init__(self, verifier: str, timeout_s: float, memory_gib: float = 0.0) -> None:
        self.verifier = verifier
        self.timeout_s = timeout_s
        self.memory_gib = memory_gib
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the child and wait until it has loaded the verifier.

        Raises:
            ConfigError: the verifier cannot be imported.
            DeadlineError: it was not ready in time, or ended at once.
        """
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "rlpost.tasks.verify_process",
            self.verifier,
            str(self.memory_gib),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=_environment(self.verifier),
            # A group of its own, so that what a verifier starts is killed with it.
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(_START_LIMIT_S):
                answer = await _read_line(self._process)
        except TimeoutError:
            answer = None
        except BaseException:
            await self.close()
            raise
        if answer == {"ready": True}:
            return
        await self.close()
        if answer is not None:
            raise ConfigError(f"task.verifier={self.verifier}: cannot load it: {answer['failed']}")
        raise DeadlineError(
            f"the process for task.verifier={self.verifier} was not ready within "
            f"{_START_LIMIT_S:g} s, or ended; its error output is in the reward worker's log"
        )

    async def verify(self, prompt: Prompt, trajectory: Trajectory) -> Verdict:
        """Return the verdict on one trajectory, within the time limit."""
        if self._process is None:
            await self.start()
        assert self._process is not None
        # Pickled, because JSON would turn tuples into lists, which some generators score as wrong.
        request = {
            "response": trajectory.text,
            "answer": prompt.answer,
            "metadata": dict(prompt.metadata),
        }
        line = base64.b64encode(pickle.dumps(request))
        try:
            async with asyncio.timeout(self.timeout_s):
                answer = await _ask(self._process, line)
        except TimeoutError:
            await self.close()
            detail = f"no verdict within reward.timeout_s={self.timeout_s:g}"
            return Verdict(reward=None, status="timeout", detail=detail)
        except BaseException:
            # An answer may still come, and would be taken for the next item's.
            await self.close()
            raise
        if answer is None:
            detail = f"the verifier's process {_ending(await self.close())}"
            return Verdict(reward=None, status="error", detail=detail)
        return Verdict(
            reward=answer["reward"],
            parts=answer.get("parts", {}),
            status=answer["status"],
            detail=answer.get("detail", ""),
        )

    async def close(self) -> int | None:
        """Kill the child, with what it started, and return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        return await process.wait()


def _environment(verifier: str) -> dict[str, str]:
    """Return a child's environment; a built-in verifier needs no secrets, so it gets none."""
    hidden = secrets_of() if verifier in BUILT_IN else {}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


async def _ask(process: asyncio.subprocess.Process, line: bytes) -> dict[str, Any] | None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(line + b"\n")
        await process.stdin.drain()
    return await _read_line(process)


async def _read_line(process: asyncio.subprocess.Process) -> dict[str, Any] | None:
    assert process.stdout is not None
    line = await process.stdout.readline()
    return json.loads(line) if line.endswith(b"\n") else None


def _ending(code: int | None) -> str:
    if code is None:
        return "was closed"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


class VerifierPool:
    """Several processes for one verifier; each verifies one trajectory at a time.

    Use: `await start()`, any number of overlapping `await verify(...)`, `await close()`.
    """

    def __init__(
        self, verifier: str, num_processes: int, timeout_s: float, memory_gib: float = 0.0
    ) -> None:
        self._processes = [
            VerifierProcess(verifier, timeout_s, memory_gib) for _ in range(num_processes)
        ]
        self._idle: asyncio.Queue[VerifierProcess] = asyncio.Queue()
        self._closed = False
        self.num_waiting = 0  # responses for which no process is free

    async def start(self) -> None:
        """Start all processes."""
        await asyncio.gather(*(process.start() for process in self._processes))
        for process in self._processes:
            self._idle.put_nowait(process)

    async def verify(self, prompt: Prompt, trajectories: Sequence[Trajectory]) -> list[Verdict]:
        """Return one verdict a trajectory, in order."""
        return await asyncio.gather(*(self._one(prompt, each) for each in trajectories))

    def situation(self) -> str:
        """Say how many responses are verified, and how many wait."""
        busy = len(self._processes) - self._idle.qsize()
        return (
            f"{busy} of {len(self._processes)} verifier processes at work, {self.num_waiting} wait"
        )

    async def _one(self, prompt: Prompt, trajectory: Trajectory) -> Verdict:
        self.num_waiting += 1
        try:
            process = await self._idle.get()
        finally:
            self.num_waiting -= 1
        try:
            if self._closed:
                return Verdict(reward=None, status="error", detail="the verifiers were closed")
            return await process.verify(prompt, trajectory)
        finally:
            self._idle.put_nowait(process)

    async def close(self) -> None:
        """Kill all processes; whoever still waits gets a verdict of status `error`."""
        self._closed = True
        await asyncio.gather(*(process.close() for process in self._processes))
