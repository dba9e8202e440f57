"""A histogram of numbers that come bit by bit is that of the numbers: none lost, none in another bin."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.ranked.histogram import FINE_BINS, StreamedHistogram, histograms

NUMBERS = st.lists(st.floats(-1e6, 1e6, width=32), max_size=40)


def streamed(*parts: list[float]) -> StreamedHistogram:
    found = StreamedHistogram()
    for part in parts:
        found.add(np.array(part, dtype=np.float64))
    return found


@settings(deadline=None)
@given(NUMBERS, st.integers(0, 40))
def test_it_does_not_matter_how_the_numbers_come(numbers: list[float], cut: int) -> None:
    whole, apart = streamed(numbers), streamed(numbers[cut:], [], numbers[:cut])
    assert (whole.width, whole.first, whole.counts.tolist()) == (apart.width, apart.first, apart.counts.tolist())


@settings(deadline=None)
@given(NUMBERS, NUMBERS, st.integers(1, 30))
def test_side_by_side_every_number_is_in_the_bin_that_holds_it(
    numbers: list[float], others: list[float], most: int
) -> None:
    if any(number < 0 for number in (*numbers, *others)) and any(number >= 0 for number in (*numbers, *others)):
        most = max(most, 2)  # 0 is an edge at any width
    made = histograms([streamed(numbers), streamed(others)], most_bins=most)
    assert len({(each.start, each.width, len(each.counts)) for each in made}) == 1
    for each, given_numbers in zip(made, (numbers, others), strict=True):
        assert len(each.counts) <= most
        assert each.total == len(given_numbers)
        edges = each.start + each.width * np.arange(len(each.counts) + 1)
        for place, count in enumerate(each.counts):
            assert count == sum(edges[place] <= number < edges[place + 1] for number in given_numbers)


@settings(deadline=None)
@given(NUMBERS.filter(bool), st.floats(0, 1))
def test_a_quantile_is_off_by_half_a_bin_at_most(numbers: list[float], share: float) -> None:
    found = streamed(numbers)
    assert len(found.counts) <= FINE_BINS
    exact = sorted(numbers)[int(share * (len(numbers) - 1))]
    assert abs(found.quantile(share) - exact) <= found.width / 2


def test_without_numbers_there_are_no_bins() -> None:
    assert np.isnan(streamed([]).quantile(0.5))
    assert [each.counts for each in histograms([streamed(), streamed([])], most_bins=8)] == [(), ()]


@pytest.mark.parametrize("numbers", [[3e38, -3e38], [1e-38, 2e-38], [0.0]])
def test_any_float32_finds_a_bin(numbers: list[float]) -> None:
    assert streamed(numbers).counts.sum() == len(numbers)
