"""Tensors in shared memory: read where they lie, and copies if they are held for longer."""

from dataclasses import dataclass

import pytest
import torch

from actors.fingerprint import fingerprint
from actors.lending import Lender
from actors.notary import Notary
from actors.publish import SharedMemory


@dataclass
class Written:
    path: str
    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    offsets: list[int]


def tensors_of(seed):
    torch.manual_seed(seed)
    shapes = {"a": (130, 129), "bias": (7,), "c": (0, 3), "d": (300, 41), "e": ()}
    dtypes = {"d": torch.bfloat16}
    return {name: torch.randn(s).to(dtypes.get(name)) for name, s in shapes.items()}


def write(memory, tensors):
    offsets, _ = memory.write(list(tensors.values()))
    return Written(
        path=memory.path,
        names=list(tensors),
        dtype_names=[str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()],
        shapes=[list(tensor.shape) for tensor in tensors.values()],
        offsets=offsets,
    )


def test_each_update_is_seen_through_one_mapping_and_a_grown_file_through_a_new_one():
    memory, lender = SharedMemory(), Lender()
    mapped = []
    for seed in (1, 2, 3):
        sent = tensors_of(seed)
        if seed == 3:
            sent["f"] = torch.randn(100_000)
        with lender.lend(write(memory, sent)) as tensors:
            arrived = {name: tensor.clone() for name, tensor in tensors}
        assert list(arrived) == list(sent)
        for name, tensor in sent.items():
            assert arrived[name].dtype == tensor.dtype
            assert torch.equal(arrived[name], tensor)
        mapped.append(id(lender._mapped[memory.path]))
    assert mapped[0] == mapped[1]
    assert lender._mapped[memory.path].size >= 400_000 + sum(
        tensor.nbytes for tensor in tensors_of(3).values()
    )


@pytest.mark.parametrize("by_view", [False, True])
def test_what_is_held_outlives_the_bucket_and_the_next_update_arrives(by_view):
    memory, lender = SharedMemory(), Lender()
    first, second = tensors_of(1), tensors_of(2)
    held = {}
    with lender.lend(write(memory, first)) as tensors:
        for name, tensor in tensors:
            if name in "ad":
                held[name] = tensor.narrow(0, 100, 30) if by_view else tensor
        del tensor
    assert (memory.path in lender._mapped) is not by_view
    with lender.lend(write(memory, second)) as tensors:
        arrived = {name: tensor.clone() for name, tensor in tensors}
    for name, tensor in held.items():
        assert torch.equal(tensor, first[name][100:130] if by_view else first[name])
    assert all(torch.equal(arrived[name], second[name]) for name in second)


def test_who_writes_to_a_lent_tensor_does_not_write_to_the_learners_memory():
    memory, lender = SharedMemory(), Lender()
    sent = tensors_of(1)
    written = write(memory, sent)
    with lender.lend(written) as tensors:
        for _, tensor in tensors:
            tensor.zero_()
    with Lender().lend(written) as tensors:
        assert all(torch.equal(tensor, sent[name]) for name, tensor in tensors)


def test_a_bias_may_be_altered_by_its_loader_and_arrives_again(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    memory, lender = SharedMemory(), Lender()
    sent = tensors_of(1)
    for _ in range(2):
        noted = {}
        with lender.lend(write(memory, sent)) as tensors, Notary(noted) as notary:
            for name, tensor in notary.noted(tensors):
                assert torch.equal(tensor, sent[name])
                if name == "bias":
                    assert noted[name] == fingerprint(tensor)  # it is too late afterwards
                    tensor.zero_()
        assert noted == {name: fingerprint(tensor) for name, tensor in sent.items()}


@pytest.mark.parametrize("threads", [1, 2])
def test_a_notary_has_noted_all_that_passed_when_its_block_ends(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    sent, noted = tensors_of(1), {}
    with Notary(noted) as notary:
        passed = dict(notary.noted(sent.items()))
    assert all(passed[name] is sent[name] for name in sent)
    assert noted == {name: fingerprint(tensor) for name, tensor in sent.items()}
