"""The result as data and as words.

Why: it is stored, sent over REST and read by people; a lost digit, a wrong gap or a sentence that sells noise as
a gain would each be believed.
"""

import json

import pytest

from pipelines.errors import PipelineError
from pipelines.evaluation.metrics import MEASURES
from pipelines.evaluation.result import EvaluationResult, comparison, gap_closed, summarise
from pipelines.evaluation.wording import signed, summary_sentences


def measured(level: float, wobble: float = 0.0, queries: int = 40):
    values = {f"q{i}": level + wobble * (1 if i % 2 else -1) for i in range(queries)}
    return {measure: dict(values) for measure in MEASURES}


def full(after: float = 0.7, control: float = 0.6) -> EvaluationResult:
    return summarise(
        {
            "teacher_rerank": measured(0.9),
            "student_after": measured(after, 0.05),
            "label_only": measured(control),
            "student_before": measured(0.5),
            "bm25": measured(0.55),
        },
        num_documents=1234,
    )


def test_summarise_brings_means_gap_and_tests_together():
    result = full()
    assert list(result.systems) == ["bm25", "student_before", "label_only", "student_after", "teacher_rerank"]
    assert result.num_queries == 40
    assert result.gap_closed == pytest.approx(0.5)
    assert set(result.comparisons) == {
        comparison("student_after", other) for other in ("bm25", "student_before", "label_only", "teacher_rerank")
    }
    assert result.comparisons["student_after_vs_teacher_rerank"].mean_difference == pytest.approx(-0.2)


def test_json_round_trip_loses_nothing():
    result = full()
    assert EvaluationResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


@pytest.mark.parametrize("damage", [{"extra": 1}, {"comparisons": {"x": {"p_value": 1}}}, {"comparisons": None}])
def test_a_damaged_result_is_refused(damage):
    with pytest.raises(PipelineError, match="not an evaluation result"):
        EvaluationResult.from_dict({**full().to_dict(), **damage})


def test_the_gap_needs_a_teacher_above_the_student():
    assert gap_closed(0.4, 0.5, 0.8) == pytest.approx(0.25)
    assert gap_closed(0.4, 0.3, 0.8) == pytest.approx(-0.25)
    assert gap_closed(0.4, 0.9, 0.8) == pytest.approx(1.25)
    assert gap_closed(0.8, 0.9, 0.8) is None


def test_systems_must_be_known_and_measured_on_the_same_queries():
    with pytest.raises(PipelineError, match="student_after"):
        summarise({"bm25": measured(0.5)}, num_documents=1)
    with pytest.raises(PipelineError, match="magic"):
        summarise({"student_after": measured(0.5), "magic": measured(0.5)}, num_documents=1)
    with pytest.raises(PipelineError, match="same queries"):
        summarise({"student_after": measured(0.5), "bm25": measured(0.5, queries=39)}, num_documents=1)


def test_a_gain_is_told_with_its_numbers():
    told = " ".join(summary_sentences(full()))
    assert "Distillation raised nDCG@10 from 0.500 to 0.700 on 40 held-out queries over 1,234 documents" in told
    assert "reaches 0.600: distillation is better (+0.100, p < 0.001)" in told
    assert "closed 50% of the gap to the re-ranking teacher (0.900)" in told


def test_noise_is_never_told_as_a_gain():
    told = " ".join(summary_sentences(full(after=0.502, control=0.499)))
    assert "did not change nDCG@10 beyond chance: 0.500 before and 0.502 after" in told
    assert "no difference beyond chance" in told
    assert "raised" not in told
    assert "closed" not in told


def test_a_loss_is_told_as_a_loss():
    told = " ".join(summary_sentences(full(after=0.4, control=0.6)))
    assert "lowered nDCG@10 from 0.500 to 0.400" in told
    assert "labels alone are better (−0.200, p < 0.001)" in told
    assert "became wider" in told


def test_a_student_alone_is_still_told():
    result = summarise({"student_after": measured(0.7)}, num_documents=10)
    assert summary_sentences(result) == [
        "The distilled student reaches 0.700 nDCG@10 on 40 held-out queries over 10 documents."
    ]


def test_differences_have_a_real_minus_and_no_signed_zero():
    assert [signed(x) for x in (0.1234, -0.1234, -0.0001)] == ["+0.123", "−0.123", "0.000"]
