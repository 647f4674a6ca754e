"""Fingerprints of tensors on their way into a model."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import torch
from torch import Tensor

from actors.fingerprint import fingerprint
from actors.lending import is_lent


class Notary:
    """Notes the fingerprints of tensors on their way; all of them stand when its block ends.

    On one CPU thread, those of what is lent are taken beside its load, where a core is free.
    """

    def __init__(self, fingerprints: dict[str, int]) -> None:
        self.fingerprints = fingerprints
        self._pending: dict[str, Future[int]] = {}

    def __enter__(self) -> Self:
        self._beside = ThreadPoolExecutor(max_workers=1)
        return self

    def __exit__(self, *_: object) -> None:
        self._beside.shutdown()
        self.fingerprints |= {name: note.result() for name, note in self._pending.items()}

    def noted(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yield the same tensors."""
        beside = torch.get_num_threads() == 1
        for name, tensor in weights:
            if beside and tensor.device.type == "cpu" and is_lent(name):
                self._pending[name] = self._beside.submit(fingerprint, tensor)
            else:
                self.fingerprints[name] = fingerprint(tensor)
            yield name, tensor
            del tensor
