"""The student's side of a step: encode each document once, score, add up the objective's terms.

Enters: a `DualEncoder`, the job's terms, and batch by batch a `ListBatch`. Leaves: the total loss and each term's value
before its weight. `StudentStep` is the module that is trained: the student, and the numbers its objective learns.

    views       which head's vectors a term sees (its `VIEW`): those that match the teacher the distillation head,
                those that need positives, labelled or the teacher's own, the contrastive one
    dimensions  with Matryoshka, every term is the mean over the full vector and its prefixes
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipelines.devices import torch_dtype
from pipelines.errors import ModelError
from pipelines.objective_terms import AMCL, ObjectiveTerm
from pipelines.objectives.learned import LearnedParameters
from pipelines.objectives.registry import OBJECTIVES, term_parameters
from pipelines.student.heads import StudentViews
from pipelines.student.matryoshka import configuration_invariance_loss, truncated
from pipelines.student.model import DualEncoder
from pipelines.training.batches import ListBatch
from pipelines.training.step_tensors import list_scores, step_tensors

__all__ = ["StudentStep", "needs_previous_student", "require_fitting"]

_PREVIOUS_TENSORS = {"previous_query_embeddings", "previous_document_embeddings"}


class StudentStep(nn.Module):
    """Call it on a batch: `{"loss": weighted sum, "<term>": value, "<term>.<parameter>": learned value}`, scalars.

    Args:
        student: trained in place.
        objective: the job's terms; weight 0 is computed and shown, but adds nothing.
        dtype: concrete dtype of the forward pass (autocast); losses are always computed in fp32.
        previous: the student as it was before this job, for terms that need it (`needs_previous_student`); constant.
    """

    def __init__(
        self,
        student: DualEncoder,
        objective: Sequence[ObjectiveTerm],
        *,
        dtype: str,
        previous: DualEncoder | None = None,
    ) -> None:
        super().__init__()
        if previous is None and needs_previous_student(objective):
            raise ValueError("the objective compares with a previous student, and none is given")
        self.student = student
        self.learned = LearnedParameters(objective).to(student.device)
        self._objective = tuple(objective)
        self._dtype = dtype
        self._previous = (previous,)  # in a tuple: its weights are not this module's

    def forward(self, batch: ListBatch) -> dict[str, Tensor]:
        """Losses of one batch; gradient flows to the student and the learned parameters."""
        student = self.student
        self.learned.keep_in_bounds()
        with torch.autocast(student.device.type, dtype=torch_dtype(self._dtype), enabled=self._dtype != "fp32"):
            queries = student.embed_views(batch.query_texts, "query")
            documents = student.embed_views(batch.document_texts, "document")
        earlier = self._previous_embeddings(batch)
        dimensions = _sampled_dimensions(student)
        values = [
            self._term_values(batch, _cut(student, queries, size), _cut(student, documents, size), earlier, size)
            for size in (None, *dimensions)
        ]
        losses: dict[str, Tensor] = {
            term.name: torch.stack([value[term.name] for value in values]).mean() for term in self._objective
        }
        total = torch.zeros((), device=student.device)
        for term in self._objective:
            if term.weight > 0:
                total = total + term.weight * losses[term.name]
        if student.spec.matryoshka and dimensions:
            losses["matryoshka_invariance"] = self._invariance(batch, queries.served, documents.served, dimensions)
            total = total + student.spec.matryoshka.invariance_weight * losses["matryoshka_invariance"]
        return {"loss": total, **losses, **self.learned.report(self._objective)}

    def _term_values(
        self,
        batch: ListBatch,
        queries: StudentViews,
        documents: StudentViews,
        earlier: dict[str, Tensor],
        size: int | None,
    ) -> dict[str, Tensor]:
        spec = self.student.spec
        by_view: dict[str, dict[str, Tensor]] = {}
        values: dict[str, Tensor] = {}
        for term in self._objective:
            info = OBJECTIVES[term.name]
            if term.VIEW not in by_view:
                by_view[term.VIEW] = step_tensors(batch, getattr(queries, term.VIEW), getattr(documents, term.VIEW))
            tensors = by_view[term.VIEW] | {
                name: value if size is None else truncated(value, size, normalize=spec.normalize)
                for name, value in earlier.items()
            }
            offered = {name: tensors[name] for name in info.tensors if name in tensors}
            values[term.name] = info.function(**offered, **(term_parameters(term) | self.learned.of(term)))
        return values

    def _previous_embeddings(self, batch: ListBatch) -> dict[str, Tensor]:
        (previous,) = self._previous
        if previous is None:
            return {}
        with torch.no_grad():
            return {
                "previous_query_embeddings": previous.embed(batch.query_texts, "query"),
                "previous_document_embeddings": previous.embed(batch.document_texts, "document"),
            }

    def _invariance(self, batch: ListBatch, queries: Tensor, documents: Tensor, dimensions: Sequence[int]) -> Tensor:
        normalize = self.student.spec.normalize
        by_dimension = [
            list_scores(
                batch,
                truncated(queries, size, normalize=normalize),
                truncated(documents, size, normalize=normalize),
            )
            for size in dimensions
        ]
        return configuration_invariance_loss(
            by_dimension, list_scores(batch, queries, documents), batch.mask.to(queries.device)
        )


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


def _sampled_dimensions(student: DualEncoder) -> tuple[int, ...]:
    matryoshka = student.spec.matryoshka
    if matryoshka is None:
        return ()
    count = matryoshka.dimensions_per_step
    if count is None or count >= len(matryoshka.dimensions):
        return matryoshka.dimensions
    drawn = torch.randperm(len(matryoshka.dimensions))[:count].sort().values
    return tuple(matryoshka.dimensions[i] for i in drawn.tolist())


def _cut(student: DualEncoder, views: StudentViews, size: int | None) -> StudentViews:
    if size is None:
        return views
    normalize = student.spec.normalize
    return StudentViews(
        served=truncated(views.served, size, normalize=normalize),
        contrastive=truncated(views.contrastive, size, normalize=normalize),
        distillation=truncated(views.distillation, size, normalize=normalize),
    )
