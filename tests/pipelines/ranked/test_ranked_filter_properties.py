"""What holds of filters on any lists: they do what a person would by hand, list by list, whatever comes together.

Logits are eighths, so that sums and differences are exact and a property holds or does not.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from filtering_for_tests import LISTS, LOGITS, Lists, Texts, columns_of, filter_specs, positive_of, reasons_in_words
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.objectives.iqr_filter import iqr_filter
from pipelines.ranked.filters import judge
from pipelines.ranked.verdicts import Reason
from pipelines.spec_sections.filters import FilterSpec

TWO_MARGINS = st.lists(st.sampled_from([0.0, 0.05, 0.1, 0.25, 0.3, 0.5, 1.0, 3.0]), min_size=2, max_size=2).map(sorted)
patient = settings(deadline=None)  # on a busy machine one example may take a moment


def reasons(lists: Lists, spec: FilterSpec) -> npt.NDArray[np.int8]:
    return judge(columns_of(lists), spec, positive=positive_of(lists), text_of=Texts(lists)).reason


def negatives(lists: Lists, **given_settings: object) -> npt.NDArray[np.bool_]:
    return reasons(lists, FilterSpec.model_validate(given_settings)) == Reason.KEPT


@patient
@given(LISTS, filter_specs())
def test_all_lists_at_once_are_judged_as_one_by_one_by_hand(lists: Lists, spec: FilterSpec) -> None:
    by_hand = [name for docs in lists for name in reasons_in_words(docs, spec)]
    assert [Reason(int(code)).label for code in reasons(lists, spec)] == by_hand


@patient
@given(LISTS, filter_specs(), st.integers(0, 6))
def test_what_comes_together_does_not_matter(lists: Lists, spec: FilterSpec, cut: int) -> None:
    apart = [reasons(part, spec) for part in (lists[:cut], lists[cut:])]
    assert reasons(lists, spec).tolist() == np.concatenate(apart).tolist()


@patient
@given(LISTS, filter_specs(min_candidates=None))
def test_positives_are_never_dropped(lists: Lists, spec: FilterSpec) -> None:
    positive = positive_of(lists)
    assert (reasons(lists, spec)[positive] == Reason.POSITIVE).all()


@patient
@given(LISTS, filter_specs())
def test_every_candidate_has_one_reason_and_a_list_is_short_as_a_whole(lists: Lists, spec: FilterSpec) -> None:
    columns = columns_of(lists)
    verdicts = judge(columns, spec, positive=positive_of(lists), text_of=Texts(lists))
    assert sum(verdicts.counts().values()) == columns.num_candidates
    short = verdicts.reason == Reason.SHORT_LIST
    assert not set(columns.list_of[short]) & set(columns.list_of[verdicts.kept])
    assert not (verdicts.relabelled & ~verdicts.kept).any()
    assert not (verdicts.relabelled & positive_of(lists)).any()


@patient
@given(LISTS, TWO_MARGINS)
def test_raising_a_margin_never_keeps_more_whatever_the_sign(lists: Lists, margins: list[float]) -> None:
    for name in ("relative_margin", "absolute_margin"):
        fewer, more = (negatives(lists, **{name: margin}) for margin in reversed(margins))
        assert not (fewer & ~more).any()


@patient
@given(LISTS, st.sampled_from([0.0, 0.05, 0.25, 0.5, 1.0]))
def test_no_margin_lets_through_what_is_above_the_positive(lists: Lists, margin: float) -> None:
    at_zero = negatives(lists, above_positive="drop")
    for bar in ({"relative_margin": margin}, {"absolute_margin": margin}, {"percent_of_positive": 1 - margin}):
        assert not (negatives(lists, **bar) & ~at_zero).any()


@patient
@given(LISTS, st.floats(0, 1))
def test_a_percentage_of_the_positive_is_a_relative_margin(lists: Lists, share: float) -> None:
    by_share = reasons(lists, FilterSpec(percent_of_positive=share))
    assert by_share.tolist() == reasons(lists, FilterSpec(relative_margin=1 - share)).tolist()


def moved(lists: Lists, *, scale: float = 1.0, shift: float = 0.0) -> Lists:
    return [[replace(doc, logit=doc.logit * scale + shift) for doc in docs] for docs in lists]


@patient
@given(
    LISTS,
    filter_specs(relative_margin=None, percent_of_positive=None, min_logit=None, max_logit=None),
    LOGITS,
)
def test_what_measures_differences_does_not_see_a_shift(lists: Lists, spec: FilterSpec, shift: float) -> None:
    assert reasons(moved(lists, shift=shift), spec).tolist() == reasons(lists, spec).tolist()


@patient
@given(LISTS, filter_specs(), st.sampled_from([0.25, 0.5, 2.0, 4.0]))
def test_a_teacher_on_another_scale_wants_its_logit_settings_on_that_scale(
    lists: Lists, spec: FilterSpec, scale: float
) -> None:
    """Relative margins and box plots need no change: they suit any teacher."""
    in_logits = ("absolute_margin", "min_logit", "max_logit", "tie_margin")
    values = {name: getattr(spec, name) for name in in_logits}
    scaled = spec.model_copy(update={name: value * scale for name, value in values.items() if value is not None})
    assert reasons(moved(lists, scale=scale), scaled).tolist() == reasons(lists, spec).tolist()


@patient
@given(LISTS, st.sampled_from([0.0, 0.125, 0.5, 2.0]))
def test_negatives_that_stay_are_further_apart_than_a_tie(lists: Lists, margin: float) -> None:
    stays = negatives(lists, tie_margin=margin)
    columns, positive = columns_of(lists), positive_of(lists)
    for number in range(len(columns)):
        here = slice(columns.offsets[number], columns.offsets[number + 1])
        logits, fixed = columns.teacher_logit[here][stays[here]], columns.teacher_logit[here][positive[here]]
        assert (-np.diff(logits) > margin).all()
        assert (np.abs(logits[:, None] - fixed[None, :]) > margin).all()


@patient
@given(LISTS, st.sampled_from([0.0, 0.5, 1.5, 3.0]))
def test_the_box_plot_is_that_of_the_loss(lists: Lists, whisker: float) -> None:
    """`objectives.iqr_filter` holds the same rule for tensors, pinned to the official code."""
    kept, columns, positive = negatives(lists, iqr_whisker=whisker), columns_of(lists), positive_of(lists)
    width = max([len(docs) for docs in lists], default=0)
    values = torch.full((len(lists), width), torch.nan, dtype=torch.float64)
    mask = torch.zeros(values.shape, dtype=torch.bool)
    where = (torch.from_numpy(columns.list_of), torch.from_numpy(columns.rank))
    values[where] = torch.from_numpy(columns.teacher_logit.astype(np.float64))
    mask[where] = torch.from_numpy(~positive)
    assert iqr_filter(values, whisker, mask)[where].tolist() == kept.tolist()


@patient
@given(LISTS)
def test_of_what_stays_no_negative_reads_as_another(lists: Lists) -> None:
    found = reasons(lists, FilterSpec(same_text="drop"))
    columns = columns_of(lists)
    texts = np.array([doc.text for docs in lists for doc in docs], dtype=np.object_)
    for number in range(len(columns)):
        here = columns.list_of == number
        kept = texts[here & (found == Reason.KEPT)].tolist()
        assert len(set(kept)) == len(kept)
        assert not set(kept) & set(texts[here & (found == Reason.POSITIVE)])
        assert set(texts[here]) == set(texts[here & (found <= Reason.RELABELLED)])
