"""Waiting for the nodes of a cluster that is still coming up."""

import logging
import time
from collections.abc import Sequence

import ray

from rlpost.errors import ResourceError

log = logging.getLogger(__name__)

_POLL_S = 1.0


def gather(names: Sequence[str], timeout_s: float) -> None:
    """Return as soon as nodes of all these names are part of the cluster.

    Raises:
        ResourceError: some did not join in time; the message names them.
    """
    deadline = time.monotonic() + timeout_s
    told = False
    while missing := [name for name in names if name not in (joined := _joined())]:
        if time.monotonic() > deadline:
            raise ResourceError(
                f"{', '.join(missing)} did not join Ray within ray.nodes_timeout_s={timeout_s:g}; "
                f"there are {', '.join(joined) or 'none'}: see what `ray start` said on what is "
                "missing, or leave it out of ray.nodes and ask for less"
            )
        if not told:
            log.info("waiting for %s to join Ray", ", ".join(missing))
            told = True
        time.sleep(_POLL_S)


def _joined() -> list[str]:
    return [node["NodeName"] for node in ray.nodes() if node["Alive"]]
