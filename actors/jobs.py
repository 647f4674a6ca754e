"""Ray's job server, as `rlpost submit cluster=ray` and `rlpost jobs` speak to it."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray._raylet import AuthenticationTokenLoader, Config  # pyrefly: ignore[missing-module-attribute]  # compiled
from ray.dashboard.modules.job import sdk
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from rlpost.cluster.targets import State
from rlpost.errors import ConfigError, ResourceError

_READY_S = 60.0
_NOT_YET = "No available agent"  # to run the driver: they come up a little after the dashboard
_OVER = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)


class JobServer:
    """A cluster's job server, reached at its dashboard's address.

    Raises:
        ConfigError: there is no token here to show, or no server there that takes it.
    """

    def __init__(self, address: str) -> None:
        # It tells of every connection, and has set its own level.
        logging.getLogger(sdk.__name__).setLevel(logging.WARNING)
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        Config.initialize("")  # Ray has read its environment when it was imported
        mode = os.environ["RAY_AUTH_MODE"]
        if mode == "token" and not AuthenticationTokenLoader.instance().has_token():
            raise ConfigError(
                f"cluster.address={address}: no token to show to the cluster: have its own in "
                "~/.ray/auth_token or RAY_AUTH_TOKEN"
            )
        with _explained(address, ConfigError):
            self._client = JobSubmissionClient(address)
        self._address = address

    def submit(self, request: Mapping[str, Any]) -> None:
        """Send a job; a cluster that has just started is given a while to be ready for one.

        Raises:
            ResourceError: the cluster does not take it.
        """
        deadline = time.monotonic() + _READY_S
        with _explained(self._address, ResourceError):
            while True:
                try:
                    self._client.submit_job(**request)
                except RuntimeError as error:
                    if _NOT_YET not in str(error) or time.monotonic() > deadline:
                        raise
                    time.sleep(1.0)
                else:
                    return

    def state(self, job_id: str) -> State:
        """Return a job's state, with Ray's own message where it has ended badly."""
        with _explained(self._address, ResourceError):
            found = self._client.get_job_info(job_id)
        assert found is not None, "a job that is not there is an error to Ray's client"
        said = (found.message or "").splitlines()[:1] if found.status is JobStatus.FAILED else []
        why = f" ({said[0]})" if said else ""
        return State(says=found.status.lower() + why, over=found.status in _OVER)

    def logs(self, job_id: str, *, follow: bool) -> Iterator[str]:
        """Yield what a job has printed, or what it prints until it ends."""
        with _explained(self._address, ResourceError):
            if not follow:
                yield self._client.get_job_logs(job_id)
                return
            chunks = self._client.tail_job_logs(job_id)
            with asyncio.Runner() as runner:
                while (chunk := runner.run(_next(chunks))) is not None:
                    yield chunk

    def stop(self, job_id: str) -> None:
        """End a job: SIGTERM, and after a while SIGKILL."""
        with _explained(self._address, ResourceError):
            self._client.stop_job(job_id)


async def _next(chunks: AsyncIterator[str]) -> str | None:
    return await anext(chunks, None)


@contextmanager
def _explained(address: str, kind: type[ConfigError | ResourceError]) -> Generator[None]:
    """Say in one line what Ray's client has to say."""
    try:
        yield
    except (RuntimeError, ConnectionError, AuthenticationError) as error:
        first = str(error).strip().splitlines()[0]
        raise kind(f"cluster.address={address}: {first}") from error
