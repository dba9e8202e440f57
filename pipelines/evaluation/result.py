"""EvaluationResult: what a finished job says about its student, small enough for a database row.

Enters: each system's per-query measures on the same held-out queries. Leaves: means, the share of the
teacher-student gap that was closed, and a paired test of the trained student against every other system.
`to_dict` and `from_dict` are its JSON form in the store and in the REST reply.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from pipelines.errors import PipelineError
from pipelines.evaluation.metrics import PerQuery, means
from pipelines.evaluation.significance import PairedTest, paired_test

__all__ = ["MAIN_MEASURE", "SYSTEMS", "EvaluationResult", "comparison", "gap_closed", "summarise"]

MAIN_MEASURE = "nDCG@10"
SYSTEMS = ("bm25", "student_before", "label_only", "student_after", "ranker_before", "teacher_rerank")
"""Names that a result may hold, in the order they are shown. `label_only` is the control: the same student,
the same steps, trained on the labelled queries alone. `ranker_before`: the teacher before adversarial rounds."""


def comparison(a: str, b: str) -> str:
    """Key of the paired test of system `a` against `b` in `EvaluationResult.comparisons`."""
    return f"{a}_vs_{b}"


@dataclass(frozen=True)
class EvaluationResult:
    """Everything measured on the held-out queries.

    Attributes:
        num_queries: held-out queries with a relevant document.
        num_documents: documents searched.
        systems: system -> measure -> mean, in the order of `SYSTEMS`.
        gap_closed: share of the nDCG@10 gap between the student before and the teacher's re-ranking that
            training closed; 1 = the teacher's quality, negative = it got worse; None where there is no gap to
            close.
        comparisons: `comparison("student_after", other)` -> paired test on nDCG@10.
    """

    num_queries: int
    num_documents: int
    systems: dict[str, dict[str, float]]
    gap_closed: float | None
    comparisons: dict[str, PairedTest]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            PipelineError: members are missing, unknown or of another shape.
        """
        try:
            tests = {name: PairedTest(**test) for name, test in data["comparisons"].items()}
            return cls(**{**data, "comparisons": tests})
        except (KeyError, TypeError, AttributeError) as error:
            raise PipelineError(f"this is not an evaluation result: {error!r}") from error


def gap_closed(before: float, after: float, teacher: float) -> float | None:
    """Share of the way from `before` to `teacher` that `after` covers; None unless the teacher is better."""
    return (after - before) / (teacher - before) if teacher > before else None


def summarise(per_query: Mapping[str, PerQuery], *, num_documents: int) -> EvaluationResult:
    """Bring the systems' measures together.

    Args:
        per_query: system -> measures from `metrics.evaluate`; `student_after` must be there, the rest may be
            missing.
        num_documents: size of the corpus that was searched.

    Raises:
        PipelineError: an unknown system, no `student_after`, or systems measured on different queries.
    """
    unknown = sorted(set(per_query) - set(SYSTEMS))
    if unknown or "student_after" not in per_query:
        raise PipelineError(f"a result needs 'student_after' and knows {SYSTEMS}; got {list(per_query)}")
    systems = {name: means(per_query[name]) for name in SYSTEMS if name in per_query}
    after = per_query["student_after"][MAIN_MEASURE]
    score = {name: measures[MAIN_MEASURE] for name, measures in systems.items()}
    closed = None
    if "student_before" in score and "teacher_rerank" in score:
        closed = gap_closed(score["student_before"], score["student_after"], score["teacher_rerank"])
    return EvaluationResult(
        num_queries=len(after),
        num_documents=num_documents,
        systems=systems,
        gap_closed=closed,
        comparisons={
            comparison("student_after", name): paired_test(after, per_query[name][MAIN_MEASURE])
            for name in systems
            if name != "student_after"
        },
    )
