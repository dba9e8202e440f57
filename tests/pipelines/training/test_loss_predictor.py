"""Which queries the teacher is asked about next.

Why: a head that learned nothing would choose as confidently as a good one; the held-out correlation is what tells them
apart, and a choice must be the same when a killed round is done again.
"""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.errors import ObjectiveError
from pipelines.objectives.loss_prediction import guided_share
from pipelines.spec import UnlabelledSpec
from pipelines.training.loss_predictor import FEWEST_OBSERVED, choose_queries, fit_loss_predictor, next_queries

Floats = npt.NDArray[np.float32]


def planted(n: int, *, noise: float, seed: int = 0, dimension: int = 16) -> tuple[Floats, Floats, Floats]:
    """Unit embeddings, losses that a direction explains up to `noise`, and what it says without noise."""
    rng = np.random.default_rng(seed)
    embeddings = rng.standard_normal((n, dimension)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    truth = np.exp(2 * embeddings @ rng.standard_normal(dimension)).astype(np.float32)
    return embeddings, (truth * np.exp(noise * rng.standard_normal(n))).astype(np.float32), truth


@given(
    predicted=st.lists(st.floats(-5, 5), max_size=20),
    count=st.integers(0, 25),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_a_choice_has_the_highest_and_then_others_none_twice(
    predicted: list[float], count: int, share: float, seed: int
) -> None:
    values = np.array(predicted)
    rows = choose_queries(values, count, share, np.random.default_rng(seed))
    assert len(rows) == min(count, len(values)) == len(set(rows.tolist()))
    guided = round(share * len(rows))
    assert values[rows[:guided]].tolist() == sorted(predicted, reverse=True)[:guided]
    np.testing.assert_array_equal(rows, choose_queries(values, count, share, np.random.default_rng(seed)))


def test_the_random_part_reaches_every_query() -> None:
    found = {
        int(row) for seed in range(200) for row in choose_queries(np.arange(10.0), 2, 0.5, np.random.default_rng(seed))
    }
    assert found == set(range(10))


@pytest.mark.parametrize("n", [60, 400])
def test_a_planted_direction_is_found_and_held_out_queries_say_so(n: int) -> None:
    embeddings, losses, _ = planted(n, noise=0.3)
    head = fit_loss_predictor(embeddings, losses, seed=1)
    assert head.correlation > 0.6
    others, _, truth = planted(n, noise=0.3)
    predicted = head.predict(others)
    assert np.corrcoef(predicted, np.log(truth))[0, 1] > 0.8


def test_the_correlation_is_that_of_queries_the_head_has_not_seen() -> None:
    """More dimensions than queries: the head can recite what it was fitted on, which says nothing."""
    found = []
    for seed in range(6):
        embeddings, _, _ = planted(50, noise=0, seed=seed, dimension=64)
        losses = np.random.default_rng(100 + seed).random(50, dtype=np.float32)
        head = fit_loss_predictor(embeddings, losses, seed=seed)
        assert np.corrcoef(head.predict(embeddings), losses)[0, 1] > 0.4
        found.append(head.correlation)
    assert abs(np.mean(found)) < 0.4


def test_only_the_order_of_the_losses_counts() -> None:
    embeddings, losses, _ = planted(50, noise=0.3)
    plain, logged = (fit_loss_predictor(embeddings, y, seed=1) for y in (losses, np.log(losses)))
    assert torch.equal(plain.weight, logged.weight)
    assert plain.correlation == pytest.approx(logged.correlation)


def test_a_fit_is_repeatable_and_moves_no_generator() -> None:
    embeddings, losses, _ = planted(50, noise=0.3)
    before = torch.get_rng_state()
    first, second = (fit_loss_predictor(embeddings, losses, seed=1) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_constant_losses_correlate_with_nothing() -> None:
    embeddings, _, _ = planted(30, noise=0)
    assert fit_loss_predictor(embeddings, np.ones(30, dtype=np.float32), seed=0).correlation == 0


def test_later_rounds_ask_about_what_is_expected_to_be_hard() -> None:
    embeddings, losses, truth = planted(600, noise=0.2)
    observed, pool = slice(0, 300), slice(300, 600)
    chosen = next_queries(
        embeddings[observed], losses[observed], embeddings[pool], count=60, round_number=2, rounds=3, seed=5
    )
    assert chosen.guided == round(guided_share(2, 3) * 60) == 30
    assert chosen.correlation is not None
    assert chosen.correlation > 0.5
    assert f"{chosen.guided} of 60" in chosen.reason
    hardness = truth[pool]
    guided, others = chosen.rows[: chosen.guided], chosen.rows[chosen.guided :]
    assert np.median(hardness[guided]) > np.quantile(hardness, 0.85)
    assert np.median(hardness[others]) < np.quantile(hardness, 0.75)


def test_without_anything_learned_the_choice_is_random_and_says_why() -> None:
    embeddings, losses, _ = planted(40, noise=0)
    first = next_queries(embeddings[:0], losses[:0], embeddings, count=10, round_number=0, rounds=3, seed=5)
    few = FEWEST_OBSERVED - 1
    scarce = next_queries(embeddings[:few], losses[:few], embeddings, count=10, round_number=1, rounds=3, seed=5)
    flat = next_queries(embeddings, np.ones_like(losses), embeddings, count=10, round_number=1, rounds=3, seed=5)
    assert [found.guided for found in (first, scarce, flat)] == [0, 0, 0]
    assert (first.correlation, scarce.correlation, flat.correlation) == (None, None, 0)
    assert "first round" in first.reason
    assert f"{few} observed" in scarce.reason
    assert "correlate by 0.00" in flat.reason
    assert set(first.rows.tolist()) != set(scarce.rows.tolist()), "each round draws anew"
    again = next_queries(embeddings[:0], losses[:0], embeddings, count=10, round_number=0, rounds=3, seed=5)
    np.testing.assert_array_equal(first.rows, again.rows)


@pytest.mark.parametrize(
    ("embeddings", "losses", "message"),
    [
        (np.zeros((10, 4)), np.zeros(10), "at least 20"),
        (np.zeros((30, 4)), np.zeros(29), r"\(29,\)"),
        (np.full((30, 4), np.nan), np.zeros(30), "NaN"),
    ],
)
def test_what_cannot_be_fitted_is_refused(embeddings: Floats, losses: Floats, message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        fit_loss_predictor(embeddings, losses, seed=0)


def test_an_impossible_choice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"share 1\.5"):
        choose_queries(np.zeros(3), 1, 1.5, np.random.default_rng(0))
    with pytest.raises(ValidationError, match="queries_per_round"):
        UnlabelledSpec(queries_per_round=0)
