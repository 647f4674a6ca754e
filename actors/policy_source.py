"""The learner's weights as vLLM wants them: full tensors, checkpoint names, a few at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from actors.fingerprint import fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorMeta:
    """Name, dtype and full shape of a tensor to be sent; the fields of vLLM's `ParamMeta`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    meta: TensorMeta
    parameters: tuple[Tensor, ...]
    materialise: Callable[[], Tensor]


class Part(StrEnum):
    """What a source streams of a LoRA policy; of any other, `merged` is everything."""

    merged = "merged"
    adapter = "adapter"
    base = "base"


class PolicySource:
    """Streams a policy's weights, gathering ZeRO-3 shards bucket by bucket.

    It has the methods of vLLM's `WeightSource` and does not inherit from it, because importing
    vLLM costs a CPU learner half a minute. Every rank must iterate in lockstep: gathering is a
    collective. Iterating, but by `iter_buckets`, fills `fingerprints`. `part` says what of a LoRA
    policy is meant: it all, its adapter merged into it, or the adapter alone, or the weights that
    it adapts.
    """

    def __init__(self, model: Any, bucket_bytes: int, part: Part = Part.merged) -> None:
        self.bucket_bytes = bucket_bytes
        self.fingerprints: dict[str, int] = {}
        self._entries = list(_entries(model, part))

    def metadata(self) -> list[TensorMeta]:
        """Return what iteration will yield, in order, without gathering anything."""
        return [entry.meta for entry in self._entries]

    def groups(self) -> list[list[str]]:
        """Return the names of each bucket."""
        return [[entry.meta.name for entry in bucket] for bucket in self._buckets()]

    def held_names(self) -> None:
        """Return None: each rank can yield every tensor."""

    def iter_groups(self) -> Iterator[tuple[list[str], list[Tensor]]]:
        """Yield names and full tensors, one bucket after another; valid until the next one."""
        for names, tensors in self.iter_buckets():
            self.fingerprints |= zip(names, map(fingerprint, tensors), strict=True)
            yield names, tensors

    def iter_buckets(self) -> Iterator[tuple[list[str], list[Tensor]]]:
        """Yield likewise; who sends the tensors fills `fingerprints` as they are read anyway."""
        self.fingerprints = {}
        for bucket in self._buckets():
            with _gathered([p for entry in bucket for p in entry.parameters]), torch.no_grad():
                tensors = [entry.materialise().detach() for entry in bucket]
                yield [entry.meta.name for entry in bucket], tensors

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for names, tensors in self.iter_groups():
            yield from zip(names, tensors, strict=True)

    def _buckets(self) -> Iterator[list[_Entry]]:
        bucket: list[_Entry] = []
        size = 0
        for entry in self._entries:
            entry_size = _size_bytes(entry.meta)
            if bucket and size + entry_size > self.bucket_bytes:
                yield bucket
                bucket, size = [], 0
            bucket.append(entry)
            size += entry_size
        if bucket:
            yield bucket


def _size_bytes(meta: TensorMeta) -> int:
    return torch.Size(meta.shape).numel() * meta.dtype.itemsize


def _gathered(parameters: list[Tensor]) -> Any:
    """Return a context in which ZeRO-3 parameters are whole; other parameters are so already."""
    import deepspeed

    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    return deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded))


def _full_shape(parameter: Tensor) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _entries(model: Any, part: Part) -> Iterator[_Entry]:
    adapted = {name: module for name, module in model.named_modules() if _is_lora(module)}
    for name, parameter in model.named_parameters():
        owner = next((key for key in adapted if name.startswith(f"{key}.")), None)
        in_adapter = owner is not None and not name.startswith(f"{owner}.base_layer.")
        if in_adapter != (part is Part.adapter):
            continue
        if in_adapter:
            yield _plain(name.replace(".default.", "."), parameter)
        elif part is Part.merged and name == f"{owner}.base_layer.weight":
            yield _merged(f"{owner}.weight", adapted[owner])
        else:
            yield _plain(name.replace(".base_layer.", "."), parameter)


def _is_lora(module: Any) -> bool:
    return hasattr(module, "base_layer") and hasattr(module, "lora_A")


def _plain(name: str, parameter: Tensor) -> _Entry:
    meta = TensorMeta(name=name, dtype=parameter.dtype, shape=_full_shape(parameter))
    return _Entry(meta=meta, parameters=(parameter,), materialise=lambda: parameter)


def _merged(name: str, layer: Any) -> _Entry:
    weight = layer.base_layer.weight
    meta = TensorMeta(name=name, dtype=weight.dtype, shape=_full_shape(weight))
    adapters = [*layer.lora_A.parameters(), *layer.lora_B.parameters()]

    def materialise() -> Tensor:
        return weight + layer.get_delta_weight("default").to(weight.dtype)

    return _Entry(meta=meta, parameters=(weight, *adapters), materialise=materialise)
