"""Ports that the hosts of a group try, to see whether they reach each other."""

import socket
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

_ANSWER_S = 3.0
_AT_ONCE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a door is: its host's address in the network of one interface, and a port."""

    host: str
    port: int
    interface: str | None


class Door:
    """A port that stands open as long as its process lives; who comes is let go at once.

    Use: `Door(host, interface)` on one host, `closed([door.address, ...])` on all others.
    """

    def __init__(self, host: str, interface: str | None) -> None:
        """`host` is an address of this host."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._server = socket.create_server((host, 0), family=family)
        port = self._server.getsockname()[1]
        self.address = Address(host=host, port=port, interface=interface)
        threading.Thread(target=self._let_go, name="door", daemon=True).start()

    def _let_go(self) -> None:
        while True:
            self._server.accept()[0].close()


def closed(doors: Sequence[Address]) -> list[tuple[Address, str]]:
    """Return the doors that cannot be reached from here, each with what came in the way."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = list(pool.map(_obstacle, doors))
    return [(door, why) for door, why in zip(doors, answers, strict=True) if why is not None]


def _obstacle(door: Address) -> str | None:
    try:
        socket.create_connection((door.host, door.port), _ANSWER_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return None
