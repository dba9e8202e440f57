"""What an objective demands of a student, asked before anything has been mined or scored.

Enters: the job's terms, a loaded student. Leaves: yes or no, or an error that names the term.
"""

from collections.abc import Sequence

from pipelines.errors import ModelError
from pipelines.objective_terms import AMCL, ObjectiveTerm
from pipelines.objectives.registry import OBJECTIVES
from pipelines.student.model import DualEncoder

__all__ = ["needs_previous_student", "require_fitting"]

_PREVIOUS_TENSORS = {"previous_query_embeddings", "previous_document_embeddings"}


def require_fitting(student: DualEncoder, objective: Sequence[ObjectiveTerm]) -> None:
    """Refuse what only the loaded student can tell, before anything has been mined or scored.

    Raises:
        ModelError: a term cuts vectors into heads, and their number does not divide the dimensions.
    """
    width = student.heads.head_dimension if student.heads else student.dimension
    for place, term in enumerate(objective):
        if isinstance(term, AMCL) and width % term.heads:
            raise ModelError(
                f"training.objective.{place}.heads: amcl cannot cut {width} dimensions into {term.heads} equal heads"
            )


def needs_previous_student(objective: Sequence[ObjectiveTerm]) -> bool:
    """Whether a term compares the student with what it was before the job."""
    return any(_PREVIOUS_TENSORS & set(OBJECTIVES[term.name].tensors) for term in objective)
