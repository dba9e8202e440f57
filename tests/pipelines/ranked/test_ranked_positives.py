"""Who counts as a positive, and how sure the teacher is of its best candidate."""

import numpy as np
import pytest
from chunks_for_tests import confidence_of
from hypothesis import given
from hypothesis import strategies as st
from test_ranked_columns import columns_of

from pipelines.ranked.positives import PositiveRule, positives, top_probability

LISTS = st.lists(
    st.lists(st.tuples(st.floats(-20, 20, width=32), st.sampled_from([None, 0, 1, 2])), max_size=6), max_size=5
)


@given(LISTS, st.booleans(), st.booleans(), st.floats(0, 1))
def test_labels_come_first_and_else_the_teacher_if_it_is_sure(
    lists: list[list[tuple[float, int | None]]], use_labels: bool, teacher_top: bool, min_confidence: float
) -> None:
    lists = [sorted(items, key=lambda item: -item[0]) for items in lists]
    rule = PositiveRule(use_labels=use_labels, teacher_top=teacher_top, min_confidence=min_confidence)
    expected: list[bool] = []
    for items in lists:
        labelled = [use_labels and (grade or 0) > 0 for _, grade in items]
        sure = teacher_top and bool(items) and confidence_of([logit for logit, _ in items]) >= min_confidence
        expected += labelled if any(labelled) or not sure else [place == 0 for place in range(len(items))]
    assert positives(columns_of(lists), rule).tolist() == expected


@given(LISTS)
def test_confidence_is_the_softmax_of_the_whole_list(lists: list[list[tuple[float, int | None]]]) -> None:
    lists = [sorted(items, key=lambda item: -item[0]) for items in lists]
    found = top_probability(columns_of(lists))
    expected = [confidence_of([logit for logit, _ in items]) if items else np.nan for items in lists]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_extreme_logits_do_not_overflow_the_confidence() -> None:
    assert top_probability(columns_of([[(3e38, None), (-3e38, None)], [(1e4, None), (1e4, None)]])) == pytest.approx(
        [1.0, 0.5]
    )
