"""Assembly: whatever the order of calls, each request is answered once, under one version of the weights."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import byte_pairs

from pipelines.teacher.scorer import ScoreAnswer, ScoreRequest
from services.teacher_pool.assembly import Assembly
from services.teacher_pool.attempts import Scores
from services.teacher_pool.calls import Call, Part, pack_calls


def request(key: int, num_pairs: int) -> ScoreRequest:
    return ScoreRequest(key, byte_pairs([(f"q{key}", f"p{row}") for row in range(num_pairs)]))


def value(key: int, row: int, version: int) -> float:
    """What the teacher of `version` thinks of a pair."""
    return 1000.0 * version + 10 * key + row / 1024


def scored(call: Call, version: int, poison: dict[int, str] | None = None) -> Scores:
    logits = [value(part.request.key, int(row), version) for part in call.parts for row in part.rows]
    return Scores(np.array(logits, np.float32), np.full(len(call), version), poison or {})


@settings(deadline=None)
@given(st.lists(st.integers(0, 900), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_any_order_of_calls_gives_every_answer_once(sizes: list[int], rng: random.Random) -> None:
    requests = [request(key, size) for key, size in enumerate(sizes)]
    calls = list(pack_calls(requests))
    rng.shuffle(calls)
    assembly, answers = Assembly(5), []
    for call in calls:
        found, again = assembly.add(call, scored(call, 5))
        answers += found
        assert not again
    assert sorted(answer.key for answer in answers) == list(range(len(sizes)))
    for answer in answers:
        wanted = np.float32([value(answer.key, row, 5) for row in range(sizes[answer.key])])
        np.testing.assert_array_equal(answer.logits, wanted)
        assert (answer.weights_version, answer.quarantined) == (5, {})


@settings(deadline=None)
@given(st.lists(st.integers(1, 900), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_new_weights_in_between_leave_no_mixed_answer(sizes: list[int], rng: random.Random) -> None:
    """Every call is scored by whatever version its replica has at that moment; versions only grow in the end."""
    waiting = list(pack_calls([request(key, size) for key, size in enumerate(sizes)]))
    assembly, answers = Assembly(0), []
    for step in range(200):
        if not waiting:
            break
        call = waiting.pop(rng.randrange(len(waiting)))
        newest = min(step // 2, 3)
        found, again = assembly.add(call, scored(call, rng.randint(max(0, newest - 1), newest)))
        answers += found
        waiting += again
    assert sorted(answer.key for answer in answers) == list(range(len(sizes)))
    for answer in answers:
        wanted = [value(answer.key, row, answer.weights_version) for row in range(sizes[answer.key])]
        np.testing.assert_array_equal(answer.logits, np.float32(wanted))


def test_only_the_old_scores_are_made_again() -> None:
    first = request(0, 4)
    parts = [Call((Part(first, np.array(rows)),)) for rows in ([0, 1], [2, 3])]
    assembly = Assembly(0)
    assert assembly.add(parts[0], scored(parts[0], 0)) == ([], [])
    answers, (again,) = assembly.add(parts[1], scored(parts[1], 1))
    assert not answers
    assert again.parts[0].rows.tolist() == [0, 1]
    ((answer,), none) = assembly.add(again, scored(again, 1))
    assert (answer.weights_version, none) == (1, [])


def test_poison_is_told_by_its_row_in_the_request() -> None:
    """It shares a call with another request, whose answer is whole."""
    requests = [request(0, 3), request(1, 4)]
    (call,) = pack_calls(requests)
    answers, again = Assembly(0).add(call, scored(call, 0, {4: "killed", 6: "nan"}))
    assert not again
    assert [dict(answer.quarantined) for answer in answers] == [{}, {1: "killed", 3: "nan"}]


def test_a_request_of_nothing_but_poison_has_the_version_that_was_wanted() -> None:
    (call,) = pack_calls([request(0, 2)])
    scores = Scores(np.full(2, np.nan, np.float32), np.full(2, -1), {0: "killed", 1: "killed"})
    ((answer,), _) = Assembly(7).add(call, scores)
    assert answer.weights_version == 7
    assert set(answer.quarantined) == {0, 1}


@pytest.mark.parametrize("version", [0, 3])
def test_an_empty_request_is_answered(version: int) -> None:
    (call,) = pack_calls([request(9, 0)])
    ((answer,), _) = Assembly(version).add(call, Scores(np.empty(0, np.float32), np.empty(0, np.int64)))
    assert isinstance(answer, ScoreAnswer)
    assert (answer.key, len(answer.logits), answer.weights_version) == (9, 0, version)
