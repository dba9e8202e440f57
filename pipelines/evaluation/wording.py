"""What a result means, in words and formatted numbers, for people who read one sentence.

Enters: an `EvaluationResult`. Leaves: strings. A difference that the paired test cannot tell from luck is
never worded as a gain; there is no other place where a result turns into prose.
"""

from pipelines.evaluation.result import MAIN_MEASURE, EvaluationResult, comparison
from pipelines.evaluation.significance import PairedTest

__all__ = ["LABELS", "SIGNIFICANT_BELOW", "p_text", "signed", "summary_sentences"]

SIGNIFICANT_BELOW = 0.05

LABELS = {
    "bm25": "BM25",
    "student_before": "Student, before",
    "label_only": "Student, labels only (control)",
    "student_after": "Student, distilled",
    "ranker_before": "Ranker before the rounds, re-ranking",
    "teacher_rerank": "Teacher, re-ranking",
}
"""How each system of a result is called, in the report and in the terminal."""


def signed(value: float) -> str:
    """A difference with its sign, three decimals, a real minus."""
    rounded = round(value, 3)
    return f"{rounded:+.3f}".replace("-", "−") if rounded else "0.000"


def p_text(p_value: float) -> str:
    """A p-value as papers print it."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def summary_sentences(result: EvaluationResult) -> list[str]:
    """One to three sentences: before and after, the control, the teacher."""
    after = result.systems["student_after"][MAIN_MEASURE]
    on = f"on {result.num_queries:,} held-out queries over {result.num_documents:,} documents"
    sentences = [_before_and_after(result, on) or f"The distilled student reaches {after:.3f} {MAIN_MEASURE} {on}."]
    control = result.comparisons.get(comparison("student_after", "label_only"))
    if control is not None:
        reached = result.systems["label_only"][MAIN_MEASURE]
        verdict = _choose(control, "distillation is better", "labels alone are better", "no difference beyond chance")
        sentences.append(
            f"The same student trained on the labels alone reaches {reached:.3f}: {verdict} {_numbers(control)}."
        )
    gain = result.comparisons.get(comparison("student_after", "student_before"))
    if result.gap_closed is not None and gain is not None and gain.p_value < SIGNIFICANT_BELOW:
        teacher = result.systems["teacher_rerank"][MAIN_MEASURE]
        sentences.append(_gap_sentence(result.gap_closed, teacher))
    return sentences


def _before_and_after(result: EvaluationResult, on: str) -> str | None:
    test = result.comparisons.get(comparison("student_after", "student_before"))
    if test is None:
        return None
    before, after = (result.systems[name][MAIN_MEASURE] for name in ("student_before", "student_after"))
    verb = _choose(test, "raised", "lowered", "did not change")
    if test.p_value < SIGNIFICANT_BELOW:
        return f"Distillation {verb} {MAIN_MEASURE} from {before:.3f} to {after:.3f} {on} {_numbers(test)}."
    return (
        f"Distillation {verb} {MAIN_MEASURE} beyond chance: {before:.3f} before and {after:.3f} after {on} "
        f"{_numbers(test)}."
    )


def _numbers(test: PairedTest) -> str:
    return f"({signed(test.mean_difference)}, {p_text(test.p_value)})"


def _gap_sentence(closed: float, teacher: float) -> str:
    if closed >= 1:
        return f"The distilled student reaches the re-ranking teacher's {teacher:.3f} without running it."
    if closed <= 0:
        return f"The gap to the re-ranking teacher ({teacher:.3f}) became wider."
    return f"Distillation closed {closed:.0%} of the gap to the re-ranking teacher ({teacher:.3f})."


def _choose(test: PairedTest, better: str, worse: str, same: str) -> str:
    if test.p_value >= SIGNIFICANT_BELOW:
        return same
    return better if test.mean_difference > 0 else worse
