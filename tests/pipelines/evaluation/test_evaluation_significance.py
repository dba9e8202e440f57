"""The paired test: right p-values, deterministic, defined everywhere.

Why: "beyond noise" is the sentence that a user acts on.
"""

import math

import numpy as np
import pytest
from scipy import stats

from pipelines.errors import PipelineError
from pipelines.evaluation.significance import paired_test


def _values(numbers):
    return {f"q{i}": float(x) for i, x in enumerate(numbers)}


def test_small_samples_are_enumerated_exactly():
    """Five differences of one sign: 2 of the 32 sign patterns are as extreme."""
    test = paired_test(_values([0.5, 0.6, 0.7, 0.8, 0.9]), _values([0.4, 0.4, 0.4, 0.4, 0.4]))
    assert test.p_value == pytest.approx(2 / 32)
    assert test.mean_difference == pytest.approx(0.3)
    assert test.num_queries == 5
    assert "all sign flips" in test.method


def test_large_samples_agree_with_the_t_test_where_that_is_right():
    generator = np.random.default_rng(0)
    b = generator.normal(0.5, 0.1, 200)
    a = b + generator.normal(0.015, 0.08, 200)
    test = paired_test(_values(a), _values(b))
    assert 0.001 < test.p_value < 0.3
    assert test.p_value == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=0.15)
    assert "9,999 sampled" in test.method


def test_equal_systems_are_not_different():
    """A t-test is undefined here (zero variance); ours is 1."""
    for size in (1, 5, 100):
        same = _values(np.linspace(0, 1, size))
        assert paired_test(same, same).p_value == 1.0


def test_false_alarms_come_as_often_as_promised():
    """Under the null hypothesis p < .05 in about one of twenty."""
    generator = np.random.default_rng(3)
    alarms = sum(
        paired_test(_values(generator.random(12)), _values(generator.random(12))).p_value < 0.05 for _ in range(200)
    )
    assert 2 <= alarms <= 20


def test_direction_and_query_order_do_not_matter():
    generator = np.random.default_rng(1)
    a, b = _values(generator.random(50)), _values(generator.random(50))
    forwards, backwards = paired_test(a, b), paired_test(b, a)
    assert forwards.mean_difference == -backwards.mean_difference
    assert forwards.p_value == pytest.approx(backwards.p_value, rel=0.1)
    assert paired_test(dict(reversed(a.items())), b) == forwards


def test_unpaired_or_broken_inputs_are_refused():
    with pytest.raises(PipelineError, match="1 and 2, 1 in common"):
        paired_test({"q1": 1.0}, {"q1": 1.0, "q2": 1.0})
    with pytest.raises(PipelineError, match="same queries"):
        paired_test({}, {})
    with pytest.raises(PipelineError, match="NaN"):
        paired_test({"q": math.nan}, {"q": 1.0})
