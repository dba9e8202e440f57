"""Each filter drops what it says and names itself; a positive is never dropped; negative logits are no special case.

Why: sentence-transformers measured a relative margin as pos * (1 - m), which for a positive below 0 lies above it and
lets false negatives through (its issue 3819); NeMo Automodel still does.
"""

import time

import numpy as np
import pytest
from filtering_for_tests import Doc, Texts, columns_of, positive_of, rows_of

from pipelines.errors import RankedListsError
from pipelines.ranked.columns import ListColumns
from pipelines.ranked.filters import anchors, judge
from pipelines.ranked.verdicts import Reason, Verdicts
from pipelines.spec_sections.filters import FilterSpec, RankWindow

GOLD = Doc(2.0, positive=True)


def judged(*lists: list[Doc], **settings: object) -> Verdicts:
    spec = FilterSpec.model_validate(settings)
    return judge(columns_of(lists), spec, positive=positive_of(lists), text_of=Texts(lists))


def labels(*lists: list[Doc], **settings: object) -> list[str]:
    return [Reason(int(code)).label for code in judged(*lists, **settings).reason]


def docs(*logits: float) -> list[Doc]:
    return [Doc(logit) for logit in logits]


def test_without_filters_everything_stays() -> None:
    verdicts = judged([Doc(3.0), GOLD, Doc(1.0)], [], docs(0.0))
    assert verdicts.reason.tolist() == [Reason.KEPT, Reason.POSITIVE, Reason.KEPT, Reason.KEPT]
    assert verdicts.kept.all()
    assert not verdicts.relabelled.any()


def test_a_candidate_as_far_below_the_positive_as_the_margin_stays() -> None:
    found = labels([Doc(2.5), GOLD, *docs(1.5, 1.0, 0.0)], absolute_margin=1)
    assert found == ["above_positive", "positive", "within_margin", "kept", "kept"]


def test_margin_zero_drops_what_is_above_the_positive_alone() -> None:
    found = labels([Doc(2.5), GOLD, *docs(2.0, 1.9)], absolute_margin=0)
    assert found == ["above_positive", "positive", "kept", "kept"]


@pytest.mark.parametrize(("positive", "bar"), [(8.0, 6.0), (-8.0, -10.0), (0.0, 0.0)])
def test_a_relative_margin_lies_below_the_positive_whatever_its_sign(positive: float, bar: float) -> None:
    assert labels([Doc(positive, positive=True), *docs(bar, bar - 1)], relative_margin=0.25)[1:] == ["kept", "kept"]
    above = Doc(np.nextafter(np.float32(bar), np.float32(9)).item())
    row = sorted([Doc(positive, positive=True), above], key=lambda doc: -doc.logit)
    assert not judged(row, relative_margin=0.25).negative.any()


def test_the_trap_of_a_percentage_of_a_negative_score() -> None:
    # min_pos * 0.95 of a positive at -10 is -9.5: candidates at -9.6, above the positive, would train as negatives.
    found = labels([Doc(-9.6), Doc(-10.0, positive=True), *docs(-10.2, -11.0)], percent_of_positive=0.95)
    assert found == ["above_positive", "positive", "within_margin", "kept"]


@pytest.mark.parametrize(("margin_from", "bar"), [("lowest", 1.0), ("highest", 3.0)])
def test_of_several_positives_the_margin_is_measured_from_one(margin_from: str, bar: float) -> None:
    row = [Doc(4.0, positive=True), Doc(3.5), Doc(3.0), GOLD, Doc(1.5), Doc(1.0)]
    verdicts = judged(row, absolute_margin=1, margin_from=margin_from)
    kept = [doc.logit for doc, stays in zip(row, verdicts.negative, strict=True) if stays]
    assert kept == [doc.logit for doc in row if not doc.positive and doc.logit <= bar]
    assert verdicts.kept[[0, 3]].all()


def test_a_list_without_a_positive_has_no_margin() -> None:
    lists = [docs(3.0, 1.0), [GOLD, Doc(1.5)]]
    found = labels(*lists, absolute_margin=1, relative_margin=0.5, above_positive="relabel")
    assert found == ["kept", "kept", "positive", "within_margin"]
    assert np.isnan(anchors(columns_of(lists), positive_of(lists), margin_from="lowest")[0])


def test_what_is_above_the_positive_is_kept_dropped_or_relabelled() -> None:
    row = [Doc(3.0), GOLD, Doc(2.0)]
    assert labels(row) == ["kept", "positive", "kept"]
    assert labels(row, above_positive="drop") == ["above_positive", "positive", "kept"]
    verdicts = judged(row, above_positive="relabel")
    assert verdicts.reason.tolist() == [Reason.RELABELLED, Reason.POSITIVE, Reason.KEPT]
    assert verdicts.relabelled.tolist() == [True, False, False]
    assert verdicts.kept.all()


def test_relabelling_takes_a_likely_positive_out_of_every_other_filter() -> None:
    row = [Doc(9.0), GOLD, *docs(1.9, 0.0, 0.0, 0.0, 0.0)]
    settings = {"max_logit": 1, "rank_window": {"first": 4}, "iqr_whisker": 0, "relative_margin": 0.25}
    assert labels(row, **settings)[:3] == ["above_positive", "positive", "within_margin"]
    assert labels(row, above_positive="relabel", **settings)[:3] == ["relabelled", "positive", "within_margin"]


@pytest.mark.parametrize(
    ("window", "kept"),
    [
        ({"first": 2, "last": 3}, [1, 2]),
        ({"first": 3}, [2, 3]),
        ({"last": 1}, [0]),
        ({"by": "bm25", "last": 4}, [1, 3]),
        ({"by": "bm25"}, [1, 2, 3]),
        ({"by": "dense", "first": 2}, [0]),
    ],
)
def test_a_rank_window_counts_from_one_and_both_ends_are_in(window: dict[str, object], kept: list[int]) -> None:
    row = [Doc(4.0, dense=1), Doc(3.0, bm25=0), Doc(2.0, bm25=4, dense=0), Doc(1.0, bm25=3)]
    verdicts = judged(row, rank_window=window)
    assert np.flatnonzero(verdicts.kept).tolist() == kept
    assert {verdicts.reason_of(place) for place in set(range(4)) - set(kept)} == {Reason.OUTSIDE_RANK_WINDOW}


def test_a_rank_window_counts_positives_as_places() -> None:
    assert labels([GOLD, *docs(1.0, 0.0)], rank_window={"first": 3}) == ["positive", "outside_rank_window", "kept"]


def test_a_score_band_includes_its_ends() -> None:
    found = labels(docs(3.0, 2.0, -1.0, -2.0), min_logit=-1, max_logit=2)
    assert found == ["outside_score_band", "kept", "kept", "outside_score_band"]


def test_the_box_plot_is_that_of_the_negatives() -> None:
    # Negatives 0 to 7: quartiles 2 and 6. The positive at 100 does not stretch the box, and stays.
    row = [Doc(100.0, positive=True), *docs(30.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, -30.0)]
    found = labels(row, iqr_whisker=1.5)
    assert found == ["positive", "outlier", *["kept"] * 6, "outlier"]


def test_of_equal_texts_the_positive_stays_then_the_teachers_best() -> None:
    row = [Doc(5.0, text="b"), Doc(4.0, text="a"), Doc(3.0, text="a", positive=True), Doc(2.0, text="b")]
    assert labels(row, same_text="drop") == ["kept", "same_text", "positive", "same_text"]
    assert labels(row, [Doc(1.0, text="b")], same_text="drop")[-1] == "kept"  # another list


def test_two_positives_of_one_text_both_stay_and_a_relabelled_copy_does_not() -> None:
    row = [
        Doc(5.0, text="a"),
        Doc(4.0, text="c"),
        Doc(3.5, text="c"),
        Doc(3.0, text="a", positive=True),
        Doc(2.0, text="a", positive=True),
    ]
    found = labels(row, same_text="drop", above_positive="relabel")
    assert found == ["same_text", "relabelled", "same_text", "positive", "positive"]


def test_a_relabelled_candidate_stands_for_its_copies() -> None:
    row = [Doc(3.0, text="a"), Doc(2.0, positive=True), Doc(1.0, text="a")]
    assert labels(row, same_text="drop", above_positive="relabel") == ["relabelled", "positive", "same_text"]


def test_what_another_filter_dropped_shadows_no_copy_and_is_not_looked_up() -> None:
    row = [Doc(5.0, text="a"), Doc(1.0, text="a"), Doc(0.0, text="a")]
    lists, texts = [row], Texts([row])
    spec = FilterSpec(same_text="drop", max_logit=2)
    verdicts = judge(columns_of(lists), spec, positive=positive_of(lists), text_of=texts)
    assert verdicts.reason.tolist() == [Reason.OUTSIDE_SCORE_BAND, Reason.KEPT, Reason.SAME_TEXT]
    assert texts.asked == ["d0-1", "d0-2"]


def test_ties_leave_one_and_go_on_from_the_one_that_stays() -> None:
    # 2.75 is near 3; 2.5 is near 2.75, but that one is gone: a slow slope is thinned, not swallowed.
    found = labels(docs(3.0, 2.75, 2.5, 2.25, 2.25), tie_margin=0.25)
    assert found == ["kept", "tied", "kept", "tied", "tied"]


def test_a_negative_as_good_as_a_positive_is_tied_to_it_from_above_and_below() -> None:
    row = [Doc(2.75), Doc(2.25), GOLD, Doc(1.75), Doc(1.25)]
    assert labels(row, tie_margin=0.25) == ["kept", "tied", "positive", "tied", "kept"]
    found = labels(row, tie_margin=0.25, above_positive="relabel")
    assert found == ["relabelled", "tied", "positive", "tied", "kept"]


def test_margin_zero_ties_equal_logits_alone() -> None:
    assert labels(docs(1.0, 1.0, 0.999), tie_margin=0) == ["kept", "tied", "kept"]


def test_a_short_list_goes_with_its_positive() -> None:
    found = labels([GOLD, *docs(1.9, 0.0)], [GOLD, *docs(0.5, 0.0)], [], absolute_margin=1, min_candidates=3)
    assert found == ["short_list", "within_margin", "short_list", "positive", "kept", "kept"]


def test_every_reason_has_a_label_and_a_sentence_and_can_be_asked_for() -> None:
    verdicts = judged([Doc(3.0), GOLD, Doc(0.0)], above_positive="drop")
    assert verdicts.reason_of(0) is Reason.ABOVE_POSITIVE
    assert verdicts.reason_of(0).sentence == "dropped: the teacher puts it above the positive"
    assert verdicts.counts() == {reason: int(reason in {0, 1, 3}) for reason in Reason}
    assert len({reason.label for reason in Reason} | {reason.sentence for reason in Reason}) == 2 * len(Reason)
    assert [reason.sentence.startswith("dropped") for reason in Reason] == [code > 2 for code in range(len(Reason))]


@pytest.mark.parametrize("logit", [float("nan"), float("-inf")])
def test_a_logit_that_is_not_finite_is_refused_by_query_and_document(logit: float) -> None:
    # NeMo Automodel writes masked documents as negatives with the score -inf.
    with pytest.raises(RankedListsError, match="query 'q1': document 'd1-1' has a logit that is not finite"):
        judged(docs(0.0), docs(0.0, logit))


def test_a_list_out_of_order_is_refused() -> None:
    with pytest.raises(RankedListsError, match="query 'q1': document 'd1-1' has a higher logit"):
        judged(docs(0.0), docs(1.0, 2.0), docs(5.0))


def test_positive_flags_of_other_lists_are_refused() -> None:
    with pytest.raises(RankedListsError, match="1 positive flags for 2 candidates"):
        judge(columns_of([docs(1.0, 0.0)]), FilterSpec(), positive=np.ones(1, dtype=np.bool_))


def test_texts_are_asked_for_where_they_are_needed() -> None:
    columns, positive = columns_of([docs(1.0)]), np.zeros(1, dtype=np.bool_)
    with pytest.raises(RankedListsError, match="same_text"):
        judge(columns, FilterSpec(same_text="drop"), positive=positive)


def test_a_million_candidates_are_judged_at_once() -> None:
    """Every filter but the look at texts. The bound is loose: a loop over candidates in Python takes many times it."""
    rng = np.random.default_rng(0)
    one = sorted(docs(*rng.normal(0, 4, 100).astype(np.float32).tolist()), key=lambda doc: -doc.logit)
    columns = ListColumns(rows_of([one]).take(np.zeros(10_000, dtype=np.int64)))
    spec = FilterSpec(
        relative_margin=0.05,
        absolute_margin=0.5,
        above_positive="relabel",
        rank_window=RankWindow(first=2, last=90),
        min_logit=-9,
        max_logit=9,
        iqr_whisker=1.5,
        tie_margin=0.01,
        min_candidates=4,
    )
    positive = rng.random(columns.num_candidates) < 0.01
    began = time.process_time()
    judge(columns, spec, positive=positive)
    assert time.process_time() - began < 5
