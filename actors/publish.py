"""The learner's side of a weight transfer: who is told what, and shared memory to send by."""

import os
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray
import torch
from ray.exceptions import RayActorError, RayTaskError
from torch import Tensor

from actors.failures import told
from actors.fingerprint import fingerprint
from actors.policy_source import PolicySource
from rlpost.errors import LostError


class Sender(Protocol):
    """Pushes the source's present weights to every rollout worker; called on every rank."""

    def send_weights(self) -> None:
        """Run one whole update: start, data, finish."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """A rollout worker as the learner sees it: what messages call it, its node's id, its handle.

    `worker` is its number, `num_ranks` that of its vLLM processes, which hold weights.
    """

    worker: int
    place: str
    node: str
    handle: Any
    num_ranks: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """A bucket that these receivers are loading."""

    receivers: Sequence[Receiver]
    calls: Sequence[Any]


class RolloutClient:
    """vLLM's `VLLMWeightSyncClient`, with a time limit on each call and proof at the end.

    `version` is set before each update; `finish_weight_update` sends it together with the
    source's fingerprints, and the worker that cannot confirm them raises `WeightSyncError`.
    A worker that dies or is late is left out from then on, with the reason in `lost`: the other
    ranks, which gather what this one sends, must not be left alone in the middle of it.
    `pause_s` is for how long the last update kept the workers from serving.
    """

    def __init__(
        self, receivers: Sequence[Receiver], source: PolicySource, node: str, timeout_s: float
    ) -> None:
        self.receivers = list(receivers)
        self.lost: dict[str, str] = {}
        self.source = source
        self.node = node
        self.timeout_s = timeout_s
        self.version = -1
        self.pause_s = 0.0
        self._stopped = 0.0

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """Connect every worker's vLLM."""
        self._call("init_weight_transfer_engine", init_info)

    def start_weight_update(self) -> None:
        """Stop serving everywhere."""
        self._stopped = time.perf_counter()
        self._call("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        """Hand one bucket's description to every worker."""
        self._call("update_weights", update_info)

    def begin_bucket(self, update_info: Mapping[str, Any], buffer: memoryview) -> Loading:
        """Hand over one shared-memory bucket: by path on this node, by Ray's store elsewhere.

        Returns what `end_bucket` waits for; until then the memory must stay as it is.
        """
        import numpy as np

        receivers = list(self.receivers)
        away = any(receiver.node != self.node for receiver in receivers)
        stored = ray.put(np.frombuffer(buffer, dtype=np.uint8)) if away else None
        calls = [
            receiver.handle.update_weights.remote(
                update_info, None if receiver.node == self.node else stored
            )
            for receiver in receivers
        ]
        return Loading(receivers=receivers, calls=calls)

    def end_bucket(self, loading: Loading) -> None:
        """Wait until every worker has loaded a bucket."""
        self._wait("update_weights", loading)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Have every worker prove the weights of `version`, and serve them."""
        del weight_version  # vLLM's own label; ours goes with the fingerprints
        self._call("finish_weight_update", self.version, self.source.fingerprints)
        self.pause_s = time.perf_counter() - self._stopped

    def _call(self, verb: str, *arguments: Any) -> None:
        receivers = list(self.receivers)
        calls = [getattr(r.handle, verb).remote(*arguments) for r in receivers]
        self._wait(verb, Loading(receivers=receivers, calls=calls))

    def _wait(self, verb: str, loading: Loading) -> None:
        """Wait for all answers; leave out whoever is lost, and raise what another one raised."""
        pairs = zip(loading.receivers, loading.calls, strict=True)
        present = [(receiver, call) for receiver, call in pairs if receiver.place not in self.lost]
        calls = [call for _, call in present]
        done, _ = (
            ray.wait(calls, num_returns=len(calls), timeout=self.timeout_s) if calls else ([], [])
        )
        for receiver, call in present:
            if call not in done:
                self._leave_out(
                    receiver,
                    f"weight transfer: {receiver.place} did not finish {verb} within "
                    f"weights.timeout_s={self.timeout_s:g} s",
                )
                continue
            try:
                ray.get(call)
            except (RayActorError, RayTaskError) as error:
                failure = told(receiver.place, verb, error)
                if not isinstance(failure, LostError):
                    raise failure from error
                self._leave_out(receiver, str(failure))

    def _leave_out(self, receiver: Receiver, reason: str) -> None:
        self.lost.setdefault(receiver.place, reason)
        self.receivers = [one for one in self.receivers if one is not receiver]


class ShmSender:
    """Copies weights, bucket by bucket, into anonymous shared memory that the workers map.

    There are two memories: while the workers load one bucket, the next is gathered and copied, and
    waits for them. They are memfds, which have a path while this process lives and vanish with it,
    so a killed learner leaves nothing behind. They are allocated once and used for every update.
    """

    def __init__(
        self,
        source: PolicySource,
        client: RolloutClient,
        rank: int,
        init_info: Mapping[str, Any] | None = None,
    ) -> None:
        self.source = source
        self.client = client
        self._memories = (SharedMemory(), SharedMemory()) if rank == 0 else ()
        if rank == 0:
            client.init_weight_transfer_engine(init_info or {})

    def send_weights(self) -> None:
        """Run one whole update; ranks that do not send join the gathering only."""
        under_way: deque[Loading] = deque()
        for number, (names, tensors) in enumerate(self.source.iter_buckets()):
            if not self._memories:
                continue
            if len(under_way) == len(self._memories):
                self.client.end_bucket(under_way.popleft())  # its memory is the next to be filled
            memory = self._memories[number % len(self._memories)]
            description = self._fill(memory, names, tensors)
            if number == 0:
                self.client.start_weight_update()  # not before there is something to load
            under_way.append(self.client.begin_bucket(description, memory.view()))
        if not under_way:
            return
        for loading in under_way:
            self.client.end_bucket(loading)
        self.client.finish_weight_update()

    def _fill(
        self, memory: "SharedMemory", names: list[str], tensors: Sequence[Tensor]
    ) -> dict[str, Any]:
        """Copy a bucket's tensors, note their fingerprints and return where each of them lies."""
        offsets, fingerprints = memory.write(tensors)
        self.source.fingerprints |= zip(names, fingerprints, strict=True)
        return {
            "path": memory.path,
            "names": names,
            "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in tensors],
            "shapes": [list(tensor.shape) for tensor in tensors],
            "offsets": offsets,
        }


class SharedMemory:
    """A growing anonymous file in memory that other processes of this host can open by path."""

    def __init__(self) -> None:
        self._file = os.memfd_create("rlpost-weights")
        weakref.finalize(self, os.close, self._file)
        self._storage = torch.empty(0, dtype=torch.uint8)
        self.path = f"/proc/{os.getpid()}/fd/{self._file}"

    def write(self, tensors: Sequence[Tensor]) -> tuple[list[int], list[int]]:
        """Copy tensors one behind another; return their offsets in bytes and fingerprints."""
        offsets, end = [], 0
        for tensor in tensors:
            offsets.append(end)
            end += -(-tensor.nbytes // 64) * 64
        self._reserve(end)
        fingerprints = [
            fingerprint(tensor, self._storage[offset : offset + tensor.nbytes])
            for tensor, offset in zip(tensors, offsets, strict=True)
        ]
        return offsets, fingerprints

    def write_bytes(self, data: memoryview) -> None:
        """Copy raw bytes to the start."""
        self._reserve(len(data))
        self._storage[: len(data)].copy_(torch.frombuffer(data, dtype=torch.uint8))

    def view(self) -> memoryview:
        """Return the bytes as they stand."""
        return self._storage.numpy().data

    def _reserve(self, size: int) -> None:
        if size > self._storage.numel():
            os.ftruncate(self._file, size)
            self._storage = torch.from_file(self.path, shared=True, size=size, dtype=torch.uint8)
