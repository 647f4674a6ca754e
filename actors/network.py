"""How gloo and NCCL go through the network: by which interface, and how long they wait."""

import os
import socket
from datetime import timedelta

import psutil
from torch.distributed import distributed_c10d

_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def use_interface(chosen: str | None, address: str) -> None:
    """Set the interface for this process, before its first process group.

    Left to themselves, gloo takes the address that the host's name resolves to, often loopback, and
    NCCL the first interface that is up. What the user has set in the environment stays.

    Args:
        chosen: the recipe's interface, or None for that which has `address`.
        address: this node's, as Ray knows it.
    """
    if chosen is not None:
        os.environ.update(dict.fromkeys(_VARIABLES, chosen))
    elif found := interface_of(address):
        for name in _VARIABLES:
            os.environ.setdefault(name, found)


def limit_waiting(timeout_s: float) -> None:
    """Limit how long the collectives of every process group made from now on wait.

    DeepSpeed makes groups of its own, for which it takes no limit but torch's default.
    """
    limit = timedelta(seconds=timeout_s)
    distributed_c10d.default_pg_timeout = distributed_c10d.default_pg_nccl_timeout = limit


def address_of(interface: str) -> str | None:
    """Return this host's address on an interface; None where it has none, or there is no such."""
    for one in psutil.net_if_addrs().get(interface, []):
        if one.family in (socket.AF_INET, socket.AF_INET6):
            return one.address
    return None


def interface_of(address: str) -> str | None:
    """Return the interface of this host that has an address; None where none does."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in addresses):
            return name
    return None
