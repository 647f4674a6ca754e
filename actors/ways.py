"""From the learner to the rollout workers: a sender for each transport that they are reached by."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch

from actors.policy_source import PolicySource
from actors.publish import Receiver, RolloutClient, Sender, ShmSender
from rlpost.placing.sharing import weight_backend
from rlpost.schema import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A transport to some of the workers: who sends, and who speaks to them."""

    sender: Sender
    client: RolloutClient


class Ways:
    """All ways from the learner's source to its receivers; the same verbs on every rank.

    Engines on the learner's GPUs are reached by CUDA IPC, others by NCCL, or all through shared
    memory. Where there are both, one update follows the other, over one source.
    """

    def __init__(
        self,
        config: RunConfig,
        receivers: Sequence[Receiver],
        source: PolicySource,
        rank: int,
        adapted: Mapping[str, Any] | None = None,
    ) -> None:
        """Connect; `adapted` proves the weights under an adapter that is sent alone."""
        self.source = source
        self.rank = rank
        self.by_backend = dict(self._connected(config, receivers, adapted))

    def _connected(
        self,
        config: RunConfig,
        receivers: Sequence[Receiver],
        adapted: Mapping[str, Any] | None,
    ) -> Iterator[tuple[str, Way]]:
        groups: dict[str, list[Receiver]] = {}
        for receiver in receivers:
            backend = "shm" if adapted else weight_backend(config, receiver.worker)
            groups.setdefault(backend, []).append(receiver)
        node = ray.get_runtime_context().get_node_id()
        for backend, members in groups.items():
            client = RolloutClient(members, self.source, node, config.weights.timeout_s)
            if backend == "shm":
                sender: Sender = ShmSender(self.source, client, self.rank, adapted)
            else:
                sender = _vllm_sender(backend, self.source, client, self.rank)
            yield backend, Way(sender=sender, client=client)

    def publish(self, version: int) -> tuple[dict[str, float], dict[str, str]]:
        """Send the weights as `version`.

        Returns the transfer's metrics, and why each worker that was lost since the connection was,
        by place.
        """
        started = time.perf_counter()
        lost: dict[str, str] = {}
        for way in self.by_backend.values():
            way.client.version = version
            way.sender.send_weights()
            lost |= way.client.lost
        seconds = time.perf_counter() - started
        pauses_s = (way.client.pause_s for way in self.by_backend.values())
        size = sum(
            torch.Size(meta.shape).numel() * meta.dtype.itemsize for meta in self.source.metadata()
        )
        metrics = {
            "weights/sync_s": seconds,
            "weights/pause_s": max(pauses_s, default=0.0),
            "weights/size_bytes": float(size),
            "weights/bandwidth_bytes_per_s": size / seconds,
            "weights/version": float(version),
        }
        return metrics, lost


def _vllm_sender(backend: str, source: PolicySource, client: RolloutClient, rank: int) -> Sender:
    """Return vLLM's own sender of `nccl` or `ipc`."""
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    num_vllm_ranks = sum(receiver.num_ranks for receiver in client.receivers)
    info = _nccl_info(rank, num_vllm_ranks) if backend == "nccl" else _ipc_info(rank, source)
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)  # type: ignore[arg-type]  # PolicySource has WeightSource's methods


def _nccl_info(rank: int, num_vllm_ranks: int) -> Any:
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
    from vllm.utils.network_utils import get_open_port

    return NCCLTrainerInitInfo(
        master_address=ray.util.get_node_ip_address(),
        master_port=get_open_port(),
        world_size=num_vllm_ranks + 1,
        rank=rank,
    )


def _ipc_info(rank: int, source: PolicySource) -> Any:
    """Return what makes vLLM's sender go through one buffer, which holds the largest tensor too.

    Left to itself it would keep a copy of all weights on a GPU that two models have to share.
    """
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

    sizes = (torch.Size(m.shape).numel() * m.dtype.itemsize for m in source.metadata())
    return IPCTrainerInitInfo(
        rank=rank, packed=True, packed_buffer_size_bytes=max(source.bucket_bytes, *sizes)
    )
