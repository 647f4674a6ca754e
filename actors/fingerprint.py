"""A number that changes when any element of a tensor changes or moves; equal on CPU and GPU."""

from collections.abc import Mapping
from hashlib import blake2b

import torch
from torch import Tensor

from rlpost.errors import WeightSyncError

_ROW_BYTES = 32 * 1024
_ROWS_AT_ONCE = {"cpu": 32, "cuda": 2**13}  # what stays in a CPU's cache; what fills a GPU


def fingerprint(tensor: Tensor, target: Tensor | None = None) -> int:
    """Return a 64-bit fingerprint of a tensor's bytes, shape left out.

    `target`, as many bytes, gets a copy of them on the way: memory is read once for both.

    The bytes, read as int64 words in rows of 4096, are summed by rows and by columns, and the list
    of all sums is hashed. A word that changes alters the sum of its row, two words that change
    places those of their rows or of their columns, whatever the words are. The sums are modulo
    2**64, hence independent of the order of summation, the device and the number of threads.
    """
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    at_once = _ROW_BYTES * _ROWS_AT_ONCE.get(flat.device.type, _ROWS_AT_ONCE["cuda"])
    sums: list[Tensor] = []
    columns = torch.zeros(_ROW_BYTES // 8, dtype=torch.int64, device=flat.device)
    for number, part in enumerate(flat.split(at_once)):
        if target is not None:
            target[number * at_once :][: part.numel()].copy_(part)
        words = _words(part)
        sums.append(words.sum(1))
        columns += words.sum(0)
    digest = blake2b(torch.cat([*sums, columns]).cpu().numpy().tobytes(), digest_size=8)
    digest.update(flat.numel().to_bytes(8))
    return int.from_bytes(digest.digest())


def _words(part: Tensor) -> Tensor:
    """Return bytes as rows of words; a copy where they are not aligned or fill no whole rows."""
    missing = -part.numel() % _ROW_BYTES
    if missing or part.storage_offset() % 8:
        copy = part.new_zeros(part.numel() + missing)
        copy[: part.numel()] = part
        part = copy
    return part.view(torch.int64).view(-1, _ROW_BYTES // 8)


def check_arrival(weights: str, sent: Mapping[str, int], arrived: Mapping[str, int]) -> None:
    """Compare the fingerprints of what was sent and of what was loaded.

    Args:
        weights: which weights, and where; the message begins with it.
        sent: fingerprints by name, of the learner.
        arrived: likewise of the vLLM process; it may hold more.

    Raises:
        WeightSyncError: a tensor is missing, or is not the one that was sent.
    """
    missing = sorted(set(sent) - set(arrived))
    unequal = sorted(name for name in sent if name in arrived and sent[name] != arrived[name])
    if missing or unequal:
        what = [f"{name} never arrived" for name in missing[:3]]
        what += [f"{name} arrived altered" for name in unequal[:3]]
        raise WeightSyncError(
            f"{weights}: {'; '.join(what)} ({len(missing)} missing, "
            f"{len(unequal)} altered of {len(sent)} tensors); this worker serves nothing"
        )
