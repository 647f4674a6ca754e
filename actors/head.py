"""Watches Ray's head, without which a run goes on for a while and then ends unexplained."""

import logging
import os
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from actors.doors import Address, closed
from rlpost.errors import LostError

log = logging.getLogger(__name__)

_RAYS_LIMIT = "RAY_gcs_rpc_server_reconnect_timeout_s"  # without its head every process of Ray ends
_RAYS_LIMIT_S = 60.0
_SHARE = 0.75  # of it: there has to be time to say why
_QUESTIONS = 6  # in that time


@contextmanager
def watched_head(address: str, lost: Callable[[LostError], None]) -> Generator[None]:
    """Ask in the block, in a thread of its own, whether the head is there.

    Args:
        address: HOST:PORT of Ray's head.
        lost: called once when the head cannot be reached for too long.
    """
    over = threading.Event()
    limit_s = _SHARE * float(os.environ.get(_RAYS_LIMIT, _RAYS_LIMIT_S))
    watch = threading.Thread(
        target=_watch, args=(address, limit_s, lost, over), name="head", daemon=True
    )
    watch.start()
    try:
        yield
    finally:
        over.set()


def _watch(
    address: str, limit_s: float, lost: Callable[[LostError], None], over: threading.Event
) -> None:
    host, _, port = address.rpartition(":")
    door = Address(host=host.strip("[]"), port=int(port), interface=None)
    last_s = time.monotonic()  # when it was there
    told = False
    while not over.wait(limit_s / _QUESTIONS):
        found = closed([door])
        silent_s = time.monotonic() - last_s
        if not found:
            if told:
                log.warning("Ray's head %s is there again after %.0f s", address, silent_s)
            last_s, told = time.monotonic(), False
        elif silent_s > limit_s:
            error = LostError(_farewell(address, silent_s, found[0][1]))
            log.error("%s", error)  # at once: to end in order may take longer than Ray leaves us
            lost(error)
            return
        elif not told:
            log.warning(
                "Ray's head %s cannot be reached: %s. The run ends if it is not back in %.0f s",
                address,
                found[0][1],
                limit_s - silent_s,
            )
            told = True


def _farewell(address: str, silent_s: float, why: str) -> str:
    return (
        f"Ray's head {address} could not be reached for {silent_s:.0f} s ({why}): its host, its "
        "link or its process gcs_server is lost, and all actors end without it. Start Ray again "
        "where the recipe names a ray.address, then the same command with resume=auto"
    )
