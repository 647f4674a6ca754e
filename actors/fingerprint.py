"""A number that changes when any element of a tensor changes or moves; equal on CPU and GPU."""

import torch
from torch import Tensor

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
