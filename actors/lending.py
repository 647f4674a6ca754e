"""What a learner wrote to shared memory, as tensors that lie there and are lent for one load."""

import mmap
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


def is_lent(name: str) -> bool:
    """Say whether a tensor is read where it lies: not a bias, some of which vLLM alters on load."""
    return not name.endswith("bias")


class Bucket(Protocol):
    """A file in shared memory, and where each tensor lies in it."""

    path: str
    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    offsets: list[int]


class Lender:
    """Maps each file once, for all updates: the mapping of a page takes longer than its copy.

    Use: `with lender.lend(bucket) as tensors: load(tensors)`. Afterwards the learner may write to
    the file again. What is still held then, like the parts of a layer whose others come in the next
    bucket, has become a copy. Biases are copies from the beginning.
    """

    def __init__(self) -> None:
        self._mapped: dict[str, np.ndarray] = {}

    @contextmanager
    def lend(self, bucket: Bucket) -> Iterator[Iterator[tuple[str, Tensor]]]:
        """Yield the bucket's tensors, by name, for as long as the block lasts."""
        loans: list[_Loan] = []
        try:
            yield self._tensors(bucket, loans)
        finally:
            intact = [loan.end() for loan in loans]
            if not all(intact):
                del self._mapped[bucket.path]  # it has pages now that the learner no longer writes

    def _tensors(self, bucket: Bucket, loans: list["_Loan"]) -> Iterator[tuple[str, Tensor]]:
        data = self._map(bucket.path)
        for name, dtype_name, shape, offset in zip(
            bucket.names, bucket.dtype_names, bucket.shapes, bucket.offsets, strict=True
        ):
            dtype = getattr(torch, dtype_name)
            memory = data[offset : offset + torch.Size(shape).numel() * dtype.itemsize]
            if not is_lent(name):
                memory = memory.copy()
            storage = torch.from_numpy(memory).untyped_storage()
            # In place: a view would be the tensor's base for good, and hold the memory.
            tensor = torch.empty(0, dtype=dtype).set_(storage).resize_(shape)
            if is_lent(name):
                loans.append(_Loan(tensor, memory))
            del memory, storage  # only the tensor holds them from here on
            yield name, tensor
            del tensor

    def _map(self, path: str) -> np.ndarray:
        with Path(path).open("rb") as file:
            size = file.seek(0, 2)
            if path not in self._mapped or self._mapped[path].size != size:
                # Private: whoever writes to a tensor does not write to the learner's file.
                buffer = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
                self._mapped[path] = np.frombuffer(buffer, dtype=np.uint8)
        return self._mapped[path]


class _Loan:
    """A tensor that was lent, and its memory; neither is kept alive by this."""

    def __init__(self, tensor: Tensor, memory: np.ndarray) -> None:
        self._tensor = weakref.ref(tensor)
        self._memory = weakref.ref(memory)

    def end(self) -> bool:
        """Make what is still held a copy; return whether the mapping is as it was."""
        tensor = self._tensor()
        if tensor is not None:
            tensor.data = tensor.clone()
            del tensor
        memory = self._memory()
        if memory is None:
            return True
        # A view of it is held. A page of a private mapping becomes a copy once it is written to.
        memory[:: mmap.PAGESIZE] = memory[:: mmap.PAGESIZE].copy()
        memory[-1:] = memory[-1:].copy()
        return False
