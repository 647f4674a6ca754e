"""Sequences dealt to ranks and put into micro-batches: bounded, balanced, each exactly once."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpost.balance import deal, fill_rows, fill_tables, split_to

LENGTHS = st.lists(st.integers(1, 60), max_size=80)


def members(bins):
    return sorted(index for one in bins for index in one)


@given(costs=LENGTHS, num_shares=st.integers(1, 9))
def test_dealt_shares_hold_all_once_and_differ_by_one_sequence_at_most(costs, num_shares):
    shares = deal(costs, num_shares)
    assert len(shares) == num_shares
    assert members(shares) == list(range(len(costs)))
    loads = [sum(costs[i] for i in share) for share in shares]
    assert max(loads) - min(loads) <= max(costs, default=0)


@given(lengths=LENGTHS, budget=st.integers(60, 300))
def test_rows_hold_all_once_within_the_budget_and_are_more_than_half_full(lengths, budget):
    bins = fill_rows(lengths, budget)
    assert members(bins) == list(range(len(lengths)))
    sums = [sum(lengths[i] for i in one) for one in bins]
    assert all(total <= budget for total in sums)
    assert sum(total <= budget / 2 for total in sums) <= 1  # two such would have been one


@given(lengths=LENGTHS, budget=st.integers(60, 300))
def test_tables_hold_all_once_within_the_budget(lengths, budget):
    bins = fill_tables(lengths, budget)
    assert members(bins) == list(range(len(lengths)))
    assert all(len(one) * max(lengths[i] for i in one) <= budget for one in bins)


@pytest.mark.parametrize("fill", [fill_rows, fill_tables])
def test_what_is_longer_than_the_budget_stands_alone(fill):
    assert fill([5, 90, 5], 60) == [[1], [0, 2]]


@given(lengths=LENGTHS, count=st.integers(1, 30))
def test_bins_are_split_to_a_number_where_there_are_members(lengths, count):
    bins = fill_rows(lengths, 100)
    split = split_to(bins, count)
    assert members(split) == list(range(len(lengths)))
    assert all(split)
    assert len(split) == max(len(bins), min(count, len(lengths)))


def test_a_long_tail_wastes_little():
    rng = random.Random(0)
    lengths = [min(448, 1 + int(rng.expovariate(1 / 125))) for _ in range(256)]
    budget, real = 2048, sum(lengths)
    tables = fill_tables(lengths, budget)
    padded = sum(len(one) * max(lengths[i] for i in one) for one in tables)
    assert 1 - real / padded < 0.1
    assert 256 * 448 / padded > 3.0  # what padding all to the longest costs
    rows = fill_rows(lengths, budget)
    assert len(rows) <= math.ceil(real / budget) + 1
