"""How gloo and NCCL go through the network."""

import os
import socket
from datetime import timedelta

import psutil
import pytest
import torch
from torch import distributed
from torch.distributed import distributed_c10d

from actors.network import address_of, interface_of, limit_waiting, use_interface


@pytest.fixture
def variables(monkeypatch):
    """Set these back at the end."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_an_address_is_found_on_its_interface():
    for name, addresses in psutil.net_if_addrs().items():
        for one in addresses:
            if one.family == socket.AF_INET:
                assert interface_of(one.address) == name
    assert interface_of("192.0.2.1") is None


def test_an_interface_has_the_address_that_it_is_found_by():
    assert interface_of(address_of("lo")) == "lo"
    assert address_of("nowhere7") is None


def test_the_nodes_interface_is_used_but_for_what_a_user_says(variables, monkeypatch):
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    use_interface(None, "127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    assert os.environ["NCCL_SOCKET_IFNAME"] == "ib0"
    use_interface("eth7", "127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == os.environ["NCCL_SOCKET_IFNAME"] == "eth7"


def test_groups_that_others_make_wait_no_longer_than_ours(variables, monkeypatch):
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        monkeypatch.setattr(distributed_c10d, name, getattr(distributed_c10d, name))
    use_interface(None, "127.0.0.1")
    limit_waiting(7.0)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        for group in (distributed.group.WORLD, distributed.new_group([0])):
            backend = group._get_backend(torch.device("cpu"))
            assert backend.options._timeout == timedelta(seconds=7)
    finally:
        distributed.destroy_process_group()
