"""Batches fit the token budget whatever the lengths are, and every pair is in exactly one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.packing import pack_by_tokens, padding_waste

LENGTHS = st.lists(st.integers(1, 600), max_size=80).map(lambda values: np.array(values, dtype=np.int64))


@given(LENGTHS, st.integers(1, 4096))
def test_every_pair_is_in_one_batch_within_the_budget(lengths: np.ndarray, budget: int) -> None:
    # The budget is what keeps a GPU from running out of memory; a lost pair would be a lost score.
    batches = pack_by_tokens(lengths, budget)
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * int(lengths[batch].max()) <= budget


@given(LENGTHS, st.integers(1, 4096))
def test_no_batch_could_have_taken_the_next_pair(lengths: np.ndarray, budget: int) -> None:
    # Greedy on sorted lengths: otherwise half-empty batches would halve the throughput unnoticed.
    batches = pack_by_tokens(lengths, budget)
    for batch in batches[:-1]:
        assert (len(batch) + 1) * int(lengths[batch].max()) > budget


@given(LENGTHS, st.integers(1, 4096))
def test_longest_come_first_and_equal_ones_keep_their_order(lengths: np.ndarray, budget: int) -> None:
    order = [row for batch in pack_by_tokens(lengths, budget) for row in batch.tolist()]
    assert order == sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))


@given(LENGTHS, st.integers(1, 4096))
def test_waste_is_the_share_of_padding(lengths: np.ndarray, budget: int) -> None:
    batches = pack_by_tokens(lengths, budget)
    padded = sum(int(lengths[batch].max()) for batch in batches for _ in batch)
    assert padding_waste(lengths, batches) == pytest.approx(1 - lengths.sum() / padded if padded else 0)


def test_sorting_wastes_little() -> None:
    lengths = np.random.default_rng(0).integers(10, 250, size=2000)
    assert padding_waste(lengths, pack_by_tokens(lengths, 8192)) < 0.05
    as_they_come = [np.arange(start, min(start + 32, 2000)) for start in range(0, 2000, 32)]
    assert padding_waste(lengths, as_they_come) > 0.4
