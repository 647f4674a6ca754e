"""The Ray cluster that a run is on."""

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class RayConfig:
    """Which Ray to run on; `address=null` starts one on this machine, bound to loopback."""

    address: str | None = None
    num_cpus: int | None = None  # null: this machine's cores
    num_gpus: int | None = None
    object_store_gib: float = 1.0
    nodes: list[str] = field(default_factory=list)  # names that must have joined before it starts
    nodes_timeout_s: float = 300.0
    placement_timeout_s: float = 60.0
    dashboard: bool = False
    token_auth: bool = True  # refuse a cluster that asks for no token
    interface: str | None = None  # of gloo and NCCL; null: that of the node's address in Ray
