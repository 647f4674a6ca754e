"""A number that changes when any element of a tensor changes or moves; equal on CPU and GPU."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from rlpost.errors import WeightSyncError

_ROW_BYTES = 32 * 1024
_ROWS_AT_ONCE = {"cpu": 32, "cuda": 2**13}  # what stays in a CPU's cache; what fills a GPU


def fingerprint(tensor: Tensor) -> int:
    """Return a 64-bit fingerprint of a tensor's bytes, shape left out.

    The bytes, followed by zeros to whole rows, are read as int64 words. The words' lower and upper
    halves are summed by rows and by columns, and these sums are weighted by position with odd
    numbers. All is exact modulo 2**64, hence independent of the order of summation, the device
    and the number of threads; halves leave room above, so that no bit is lost when elements swap
    places.
    """
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    at_once = _ROW_BYTES * _ROWS_AT_ONCE.get(flat.device.type, _ROWS_AT_ONCE["cuda"])
    rows: list[Tensor] = []
    columns = torch.zeros(2, _ROW_BYTES // 8, dtype=torch.int64, device=flat.device)
    for part in flat.split(at_once):
        words = _words(part)
        uppers = words >> 32
        rows.append(torch.stack([words.sum(1), uppers.sum(1)]))
        columns += torch.stack([words.sum(0), uppers.sum(0)])
    sums = [*torch.cat(rows, 1), *columns]
    return sum(_weighted(both) * 31**n for n, both in enumerate(_halves(sums))) % 2**64


def _words(part: Tensor) -> Tensor:
    """Return bytes as rows of words; a copy where they are not aligned or fill no whole rows."""
    missing = -part.numel() % _ROW_BYTES
    if missing or part.storage_offset() % 8:
        copy = part.new_zeros(part.numel() + missing)
        copy[: part.numel()] = part
        part = copy
    return part.view(torch.int64).view(-1, _ROW_BYTES // 8)


def _halves(sums: list[Tensor]) -> Iterator[Tensor]:
    """Yield the sums of lower and of upper halves, from those of words and of upper halves."""
    for whole, upper in zip(sums[::2], sums[1::2], strict=True):
        yield whole - (upper << 32)
        yield upper


def _weighted(sums: Tensor) -> int:
    """Return sum_i (2i + 1) * sums_i modulo 2**64."""
    odd = torch.arange(sums.numel(), device=sums.device, dtype=torch.int64) * 2 + 1
    return int((sums * odd).sum().item())


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
