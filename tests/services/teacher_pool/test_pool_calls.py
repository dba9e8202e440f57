"""Calls: every pair of every request exactly once, in pieces worth a trip, the same pieces each time."""

import itertools
from collections.abc import Iterator

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import byte_pairs, texts_of

from pipelines.teacher.scorer import ScoreRequest
from pipelines.tokens import TokenPairs, Tokens
from services.teacher_pool.calls import LEAST_PAIRS, MOST_PAIRS, MOST_TOKENS, Call, pack_calls


def request(key: int, num_pairs: int, tokens_each: int) -> ScoreRequest:
    """A request of pairs with one query of one token and passages of `tokens_each - 1`."""
    passages = Tokens.of([[row % 1000] * (tokens_each - 1) for row in range(num_pairs)])
    rows = np.arange(num_pairs)
    return ScoreRequest(key, TokenPairs("t", Tokens.of([[7]]), passages, np.zeros_like(rows), rows))


def tokens(call: Call) -> int:
    return int(call.pairs().lengths.sum())


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1500), st.integers(2, 300)), max_size=12))
def test_every_pair_is_in_one_call_and_calls_are_worth_a_trip(sizes: list[tuple[int, int]]) -> None:
    requests = [request(key, *size) for key, size in enumerate(sizes)]
    calls = list(pack_calls(requests))
    rows: dict[int, list[int]] = {key: [] for key in range(len(requests))}
    for call in calls:
        assert len(call) == sum(len(part) for part in call.parts) <= MOST_PAIRS
        for part in call.parts:
            rows[part.request.key] += part.rows.tolist()
    assert rows == {key: list(range(num_pairs)) for key, (num_pairs, _) in enumerate(sizes)}
    full = [call for call in calls if len(call)]
    for call in full:
        # No call is long for its tokens, but for its least number of pairs; the last piece of a cut may add one part.
        assert tokens(call) <= 2 * MOST_TOKENS + LEAST_PAIRS * 300
    joinable = [(one, two) for one, two in itertools.pairwise(full) if len(one) + len(two) <= LEAST_PAIRS]
    assert not joinable, "two neighbours would have been one trip"


def test_small_chunks_share_a_call_and_a_large_one_is_cut() -> None:
    assert [len(call) for call in pack_calls(request(key, 16, 100) for key in range(32))] == [176, 176, 160]
    assert [len(call) for call in pack_calls([request(0, 4000, 10)])] == [500] * 8
    assert {len(call) for call in pack_calls([request(0, 1280, 512)])} == {64}, "long texts: few pairs a call"


def test_what_is_sent_are_the_pairs_and_no_other_texts() -> None:
    first = ScoreRequest(0, byte_pairs([(f"q{row}", f"passage {row}") for row in range(3)]))
    second = ScoreRequest(1, byte_pairs([("other", "text")]))
    (call,) = pack_calls([first, second])
    sent = call.pairs()
    assert texts_of(sent) == [("q0", "passage 0"), ("q1", "passage 1"), ("q2", "passage 2"), ("other", "text")]
    some = first.pairs.take(np.array([2, 0]))
    assert texts_of(some) == [("q2", "passage 2"), ("q0", "passage 0")]
    assert len(some.passages) == 2, "the passage in between is not carried along"


def test_a_request_without_pairs_is_answered_in_its_turn() -> None:
    calls = list(pack_calls([request(0, 0, 2), request(1, 3, 5), request(2, 0, 2)]))
    assert [[(part.request.key, len(part)) for part in call.parts] for call in calls] == [[(0, 0)], [(2, 0)], [(1, 3)]]


def test_requests_are_pulled_as_they_are_needed() -> None:
    pulled: list[int] = []

    def requests() -> Iterator[ScoreRequest]:
        for key in range(1000):
            pulled.append(key)
            yield request(key, 64, 300)

    calls = pack_calls(requests())
    next(calls)
    assert len(pulled) == 1
