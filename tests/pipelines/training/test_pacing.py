"""Which lists take part when.

Why: a pace that depends on how far the reader is ahead, or on losses seen after a resume, gives another student each
time; a list that never takes part is data thrown away in silence.
"""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.errors import ObjectiveError
from pipelines.objectives.list_kl import list_kl_loss
from pipelines.ranked.tail import StreamPosition
from pipelines.spec_sections.curriculum import PacingSpec
from pipelines.training.pacing import Pacing, list_entropy, progress_at
from pipelines.training.query_losses import UNSEEN, QueryLosses, frozen, list_losses

SHARE = st.floats(0, 1)
PACINGS = st.builds(
    lambda start, full_at, weight: Pacing(PacingSpec(start=start, full_at=full_at, loss_weight=weight)),
    SHARE,
    st.floats(0, 1, exclude_min=True),
    SHARE,
)
QUANTILES = st.one_of(st.just(UNSEEN), SHARE)


@given(pacing=PACINGS, entropy=SHARE, quantile=QUANTILES, progress=SHARE)
def test_the_rule_is_the_formula(pacing: Pacing, entropy: float, quantile: float, progress: float) -> None:
    spec = pacing.spec
    weight = spec.loss_weight if quantile >= 0 else 0
    assert pacing.difficulty(entropy, quantile) == pytest.approx((1 - weight) * entropy + weight * quantile)
    limit = spec.start + (1 - spec.start) * min(1, progress / spec.full_at)
    assert pacing.limit(progress) == pytest.approx(limit)
    assert pacing.takes_part(entropy, quantile, progress) == (
        pacing.difficulty(entropy, quantile) <= pacing.limit(progress)
    )


@given(pacing=PACINGS, entropy=SHARE, quantile=QUANTILES, beyond=SHARE)
def test_everything_takes_part_in_the_end(pacing: Pacing, entropy: float, quantile: float, beyond: float) -> None:
    full_at = pacing.spec.full_at
    assert pacing.takes_part(entropy, quantile, full_at)
    assert pacing.takes_part(entropy, quantile, full_at + beyond * (1 - full_at))


@given(pacing=PACINGS, entropy=SHARE, quantile=QUANTILES, two=st.tuples(SHARE, SHARE))
def test_what_takes_part_goes_on_to(pacing: Pacing, entropy: float, quantile: float, two: tuple[float, float]) -> None:
    assert pacing.takes_part(entropy, quantile, min(two)) <= pacing.takes_part(entropy, quantile, max(two))


@given(logits=st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=30))
def test_entropy_is_the_formula_in_its_bounds(logits: list[float]) -> None:
    p = torch.tensor(logits, dtype=torch.float64).softmax(dim=0)
    expected = torch.distributions.Categorical(probs=p).entropy().item() / np.log(len(logits))
    found = list_entropy(np.array(logits))
    assert 0 <= found <= 1
    assert found == pytest.approx(expected, abs=1e-6)


def test_entropy_at_its_ends() -> None:
    assert list_entropy(np.full(7, 3.0, dtype=np.float32)) == pytest.approx(1)
    assert list_entropy(np.array([1e4, -1e4], dtype=np.float32)) == 0
    assert list_entropy(np.array([2.0], dtype=np.float32)) == 0
    with pytest.raises(ObjectiveError, match="1 NaN or infinite"):
        list_entropy(np.array([1.0, np.nan], dtype=np.float32))


@given(num_rows=st.integers(1, 50), epochs=st.integers(1, 4))
def test_progress_counts_rows_and_never_falls(num_rows: int, epochs: int) -> None:
    places = [StreamPosition(epoch, ordinal) for epoch in range(epochs) for ordinal in range(num_rows)]
    found = [progress_at(place, num_rows=num_rows, epochs=epochs) for place in places]
    assert found == pytest.approx([i / len(places) for i in range(len(places))])
    assert all(before < after for before, after in itertools.pairwise(found))
    assert progress_at(StreamPosition(epochs, 0), num_rows=num_rows, epochs=epochs) == 1


@given(seed=st.integers(0, 2**31), width=st.integers(2, 6), ragged=st.booleans())
def test_losses_of_lists_are_those_that_list_kl_averages(seed: int, width: int, ragged: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(5, width, generator=generator, requires_grad=True)
    teacher = torch.randn(5, width, generator=generator) * 4
    mask = torch.rand(5, width, generator=generator) < 0.7 if ragged else None
    if mask is not None:
        mask[:, 0] = True
    found = list_losses(student, teacher, mask, temperature=0.05, teacher_temperature=2.0)
    assert found.shape == (5,)
    assert not found.requires_grad
    assert bool((found >= 0).all())
    mean = list_kl_loss(student, teacher, mask, temperature=0.05, teacher_temperature=2.0)
    assert found.mean().item() == pytest.approx(mean.item(), rel=1e-5, abs=1e-6)


@given(losses=st.lists(st.floats(0, 100, width=32), min_size=1, max_size=8), decay=st.floats(0, 0.99))
def test_an_average_begins_with_the_first_loss_and_follows(losses: list[float], decay: float) -> None:
    averages = QueryLosses(3, decay=decay)
    expected = losses[0]
    for loss in losses:
        averages.update(torch.tensor([1]), torch.tensor([loss]))
        expected = decay * expected + (1 - decay) * loss
    assert averages.average[1].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert averages.seen.tolist() == [False, True, False]
    assert averages.average.isfinite().all()


def test_a_query_twice_in_a_step_counts_once_with_its_mean() -> None:
    averages = QueryLosses(2)
    averages.update(torch.tensor([1, 0, 1]), torch.tensor([1.0, 7.0, 3.0]))
    assert averages.average.tolist() == [7, 2]


@given(values=st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0, 8.0]), min_size=1, max_size=12), unseen=st.integers(0, 3))
def test_quantiles_order_the_seen_and_only_their_order_counts(values: list[float], unseen: int) -> None:
    plain, squared = (QueryLosses(len(values) + unseen) for _ in range(2))
    for averages, power in ((plain, 1), (squared, 2)):
        averages.update(torch.arange(len(values)), torch.tensor(values) ** power)
    found = frozen(plain)
    assert (found[len(values) :] == UNSEEN).all()
    seen = found[: len(values)]
    assert ((seen > 0) & (seen < 1)).all()
    assert seen.mean() == pytest.approx(0.5)
    assert (np.sign(seen[:, None] - seen) == np.sign(np.subtract.outer(values, values))).all()
    np.testing.assert_array_equal(frozen(squared), found)


def test_a_run_resumed_within_an_epoch_is_paced_as_the_whole_one() -> None:
    """Losses taken in since the epoch began must not count, though the checkpoint holds them."""
    generator = torch.Generator().manual_seed(0)
    whole = QueryLosses(6)
    whole.update(torch.arange(6), torch.rand(6, generator=generator))
    at_start = whole.quantiles_of(1)
    whole.update(torch.tensor([0, 3]), torch.tensor([9.0, 8.0]))
    resumed = QueryLosses(6)
    resumed.load_state_dict({name: value.clone() for name, value in whole.state_dict().items()})
    np.testing.assert_array_equal(resumed.quantiles_of(1), at_start)
    assert (frozen(whole) != at_start).any(), "the losses since then would have changed the pace"
    for averages in (whole, resumed):
        averages.update(torch.tensor([1, 2, 0]), torch.tensor([0.1, 0.2, 0.3]))
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
    np.testing.assert_array_equal(whole.quantiles_of(2), resumed.quantiles_of(2))
    with pytest.raises(ValueError, match=r"epoch 1 .* 2 are frozen"):
        whole.quantiles_of(1)


def test_the_first_epoch_knows_no_loss() -> None:
    averages = QueryLosses(3)
    averages.update(torch.tensor([0]), torch.tensor([5.0]))
    assert (averages.quantiles_of(0) == UNSEEN).all()


@pytest.mark.parametrize(
    ("rows", "losses", "message"),
    [
        (torch.tensor([3]), torch.tensor([1.0]), "row 3 is none of 3"),
        (torch.tensor([-1]), torch.tensor([1.0]), "row -1 is none of 3"),
        (torch.tensor([0]), torch.tensor([float("nan")]), "1 NaN"),
        (torch.tensor([0, 1]), torch.tensor([1.0]), "must be int64"),
        (torch.tensor([0.0]), torch.tensor([1.0]), "must be int64"),
    ],
)
def test_a_wrong_update_changes_nothing(rows: torch.Tensor, losses: torch.Tensor, message: str) -> None:
    averages = QueryLosses(3)
    with pytest.raises(ObjectiveError, match=message):
        averages.update(rows, losses)
    assert not averages.seen.any()


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_forgets_nothing_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=f"decay {decay}"):
        QueryLosses(3, decay=decay)


@pytest.mark.parametrize("field", [{"start": 1.1}, {"full_at": 0}, {"loss_weight": -0.1}, {"end": 1}])
def test_an_impossible_pacing_is_refused(field: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(field))):
        PacingSpec.model_validate(field)
