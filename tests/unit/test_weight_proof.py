"""What proves the weights: fingerprints, the comparison, and the check of versions."""

import pytest
import torch

from actors.fingerprint import check_arrival, fingerprint
from actors.publish import SharedMemory
from rlpost.errors import WeightSyncError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (7, 3), (130, 129), (600_001,)])
def test_any_flipped_or_moved_element_changes_the_fingerprint(dtype, shape):
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(shape, generator=generator).to(dtype)
    whole = fingerprint(tensor)
    assert fingerprint(tensor.clone()) == whole
    flat = tensor.flatten()
    for index in {0, flat.numel() // 2, flat.numel() - 1}:
        altered = flat.clone()
        altered[index] = -altered[index]
        assert fingerprint(altered) != whole
    if flat.numel() > 1:
        swapped = flat.clone()
        swapped[0], swapped[-1] = flat[-1], flat[0]
        assert fingerprint(swapped) != whole


@pytest.mark.parametrize("distance", [1, 2, 8192, 3 * 8192, 300_000])
def test_elements_that_differ_in_their_sign_only_do_not_swap_unnoticed(distance):
    tensor = torch.randn(600_001, generator=torch.Generator().manual_seed(0))
    for start in (0, 1):
        tensor[start + distance] = -tensor[start]
        swapped = tensor.clone()
        swapped[start], swapped[start + distance] = tensor[start + distance], tensor[start]
        assert fingerprint(swapped) != fingerprint(tensor)


def test_the_fingerprint_is_that_of_the_bytes_wherever_they_lie():
    tensor = torch.randn(600_001, generator=torch.Generator().manual_seed(0))
    assert fingerprint(tensor[1:]) == fingerprint(tensor[1:].clone())
    assert fingerprint(tensor[1:9]) == fingerprint(tensor[1:9].view(2, 4).clone())
    assert fingerprint(tensor[:0]) == fingerprint(tensor[9:9].clone())


def test_an_altered_or_missing_tensor_is_named():
    sent = {"a.weight": 1, "b.weight": 2, "c.weight": 3}
    check_arrival("weights of version 5 in rollout-1", sent, dict(sent))
    with pytest.raises(WeightSyncError, match=r"version 5 in rollout-1: b.weight arrived altered"):
        check_arrival("weights of version 5 in rollout-1", sent, {**sent, "b.weight": 9})
    with pytest.raises(WeightSyncError, match=r"c.weight never arrived"):
        check_arrival("weights of version 5 in rollout-1", sent, {"a.weight": 1, "b.weight": 2})


def test_shared_memory_gives_back_what_was_written_and_grows():
    memory = SharedMemory()
    for size in (3, 5000, 600_001):
        tensors = [torch.arange(size, dtype=torch.float32), torch.ones(2, dtype=torch.bfloat16)]
        offsets, fingerprints = memory.write(tensors)
        assert fingerprints == [fingerprint(tensor) for tensor in tensors]
        with open(memory.path, "rb") as file:  # noqa: PTH123 - a path under /proc
            data = file.read()
        for tensor, offset in zip(tensors, offsets, strict=True):
            raw = bytearray(data[offset : offset + tensor.nbytes])
            assert torch.equal(torch.frombuffer(raw, dtype=tensor.dtype), tensor)


def test_no_exchange_of_two_words_hides_from_the_fingerprint():
    """Neither by where they lie nor by how they differ: in their highest bits, or a row apart."""
    words = torch.zeros(963 * 4096, dtype=torch.int64)
    places = ((0, 4096), (0, 2), (4096 + 40, 9), (31, 4096), (961 * 4096 + 10, 11))
    for first, second in places:
        for one in (-(2**63), 1, 2**62):
            altered = [words.clone(), words.clone()]
            altered[0][first], altered[1][second] = one, one
            assert fingerprint(altered[0]) != fingerprint(altered[1])
            assert fingerprint(altered[0]) != fingerprint(words)
