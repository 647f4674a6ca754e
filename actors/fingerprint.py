"""A number that changes when any element of a tensor changes or moves; equal on CPU and GPU."""

from collections.abc import Mapping

import torch
from torch import Tensor

from rlpost.errors import WeightSyncError

_COLUMNS = 4096


def fingerprint(tensor: Tensor) -> int:
    """Return a 64-bit fingerprint of a tensor's bytes, shape left out.

    The bytes, read as int32 words in rows of 4096, are summed by rows and by columns and both
    sums are weighted by position. All arithmetic is modulo 2**64, hence exact and independent of
    the order of summation, the device and the number of threads.
    """
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if padding := -flat.numel() % (4 * _COLUMNS) if flat.numel() < 4 * _COLUMNS else 0:
        flat = torch.nn.functional.pad(flat, (0, padding))
    whole = flat.numel() // (4 * _COLUMNS) * (4 * _COLUMNS)
    words = flat[:whole].view(torch.int32).view(-1, _COLUMNS)
    total = _weighted(words.sum(1, dtype=torch.int64)) * 31 + _weighted(
        words.sum(0, dtype=torch.int64)
    )
    if whole < flat.numel():
        total += fingerprint(flat[whole:]) * 17
    return total % 2**63


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
