"""SimANS draws what it says it draws: the right weights, without replacement, down to weights that exp cannot hold.

Why: a sampler that is subtly wrong trains a student that is subtly worse, and no test further up would show it.
"""

import math
from itertools import permutations

import numpy as np
import pytest

from pipelines.errors import ObjectiveError
from pipelines.objectives.simans import draw_simans, simans_weights

SCORES = (9.0, 7.5, 6.0, 5.0, 2.0, -8.0)
FORMS = {
    "paper": lambda s: math.exp(-0.7 * (s - 6.5 - 1) ** 2),
    "code": lambda s: math.exp(-0.7 * (s - 6.5 + 1) ** 2),
    "ms_marco": lambda s: math.exp(-0.7 * abs(s - 6.5)),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_the_formula_of_each_form(form):
    weights = [FORMS[form](s) for s in SCORES]
    found = simans_weights(SCORES, 6.5, a=0.7, b=0.0 if form == "ms_marco" else 1.0, form=form)
    np.testing.assert_allclose(found, np.array(weights) / sum(weights), rtol=1e-12)
    assert found.dtype == np.float64


def test_paper_and_code_differ_in_the_sign_of_b_alone():
    paper = simans_weights(SCORES, 6.5, b=1.5)
    np.testing.assert_array_equal(paper, simans_weights(SCORES, 6.5, b=-1.5, form="code"))
    assert SCORES[int(paper.argmax())] == 7.5, "above the positive's score"
    assert SCORES[int(simans_weights(SCORES, 6.5, b=1.5, form="code").argmax())] == 5.0, "below it"


def test_negatives_far_from_the_positive_still_have_probabilities():
    """exp(-a d^2) is 0 beyond a distance of 40: the code's weights would be 0 / 0."""
    found = simans_weights([-60.0, -61.0, -90.0], 0.0)
    assert found.sum() == pytest.approx(1)
    assert found[0] > 0.99
    assert set(draw_simans([-60.0, -61.0, -90.0], 0.0, count=3, rng=np.random.default_rng(0))) == {0, 1, 2}


def test_draws_are_those_of_one_after_the_other_without_replacement():
    """Against the probability of each pair, added up over the two orders in which it can come."""
    scores, settings = [6.0, 5.0, 7.5, 4.0], {"a": 0.3, "b": 0.5}
    weights = simans_weights(scores, 6.5, **settings)
    expected: dict[tuple[int, ...], float] = {}
    for first, second in permutations(range(4), 2):
        chance = weights[first] * weights[second] / (1 - weights[first])
        expected[tuple(sorted((first, second)))] = expected.get(tuple(sorted((first, second))), 0) + chance
    rng = np.random.default_rng(7)
    drawn = [tuple(draw_simans(scores, 6.5, count=2, rng=rng, **settings).tolist()) for _ in range(20_000)]
    assert set(drawn) <= set(expected), "distinct, in list order"
    for pair, chance in expected.items():
        # Five standard deviations of a share among 20000 draws.
        assert abs(drawn.count(pair) / 20_000 - chance) < 5 * math.sqrt(chance * (1 - chance) / 20_000)


def test_equal_scores_and_a_of_zero_draw_uniformly():
    np.testing.assert_allclose(simans_weights([3.0] * 5, 9.0), 0.2)
    np.testing.assert_allclose(simans_weights(SCORES, 9.0, a=0.0), 1 / 6)


def test_fewer_than_asked_for_are_all_taken():
    rng = np.random.default_rng(0)
    assert draw_simans(SCORES, 6.5, count=50, rng=rng).tolist() == [0, 1, 2, 3, 4, 5]
    assert draw_simans([], 6.5, count=3, rng=rng).tolist() == []
    assert draw_simans(SCORES, 6.5, count=0, rng=rng).tolist() == []
    assert simans_weights([], 6.5).shape == (0,)


def test_how_many_are_drawn_does_not_change_what_chance_comes_next():
    """So that a list that is cut differently leaves every later draw as it was."""
    one, other = np.random.default_rng(3), np.random.default_rng(3)
    draw_simans(SCORES, 6.5, count=1, rng=one)
    draw_simans(SCORES, 6.5, count=5, rng=other)
    assert one.random() == other.random()


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (([[1.0]], 0.0), {}, "one row"),
        (([math.nan], 0.0), {}, "finite"),
        (([1.0], math.inf), {}, "finite"),
        (([1.0], 0.0), {"a": -1.0}, "a must be"),
        (([1.0], 0.0), {"a": math.nan}, "a must be"),
        (([1.0], 0.0), {"b": math.inf}, "b must be"),
        (([1.0], 0.0), {"form": "ms_marco", "b": 1.0}, "knows no b"),
        (([1.0], 0.0), {"form": "readme"}, "unknown form 'readme'"),
    ],
)
def test_what_would_give_wrong_probabilities_is_refused(arguments, settings, message):
    with pytest.raises(ObjectiveError, match=rf"^simans: .*{message}"):
        simans_weights(*arguments, **settings)


def test_a_negative_count_is_refused():
    with pytest.raises(ObjectiveError, match="simans: count must not be negative, got -1"):
        draw_simans([1.0], 0.0, count=-1, rng=np.random.default_rng(0))
