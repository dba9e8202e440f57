"""The student's side of a step: encode each document once, score, add up the objective's terms.

Enters: a `DualEncoder`, the job's terms, and batch by batch a `ListBatch`. Leaves: the total loss and each term's value
before its weight. `StudentStep` is the module that is trained: the student, and the numbers its objective learns.

    views       which head's vectors a term sees (its `VIEW`): those that match the teacher the distillation head,
                those that need positives, labelled or the teacher's own, the contrastive one
    dimensions  with Matryoshka, every term is the mean over the full vector and its prefixes
    queue       with a momentum queue, earlier documents stand behind the batch's own, as negatives (`moving_average`)
    workers     all encode a part of the texts and compute the whole loss (`encoding`)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipelines.objective_terms import ListKL, ObjectiveTerm
from pipelines.objectives.learned import LearnedParameters
from pipelines.objectives.registry import OBJECTIVES, term_parameters
from pipelines.spec import MomentumSpec
from pipelines.student.heads import StudentViews
from pipelines.student.matryoshka import configuration_invariance_loss, truncated
from pipelines.student.model import DualEncoder
from pipelines.training.batches import ListBatch
from pipelines.training.encoding import EncodingSettings, StepTexts, encode_texts
from pipelines.training.fitting import needs_previous_student
from pipelines.training.moving_average import DocumentQueue, SlowCopy, text_keys
from pipelines.training.query_losses import QueryLosses, list_losses
from pipelines.training.step_tensors import Queued, list_scores, step_tensors
from pipelines.training.workers import ALONE, Workers

__all__ = ["StepFacts", "StudentStep"]

_PLAIN = EncodingSettings()


@dataclass(frozen=True, eq=False)
class StepFacts:
    """What the last forward pass saw, without gradient: for metrics, pacing and the momentum queue.

    Attributes:
        batch: its lists.
        texts: what was encoded.
        queries: [Q, D], served vectors.
        documents: [N, D], served vectors.
    """

    batch: ListBatch
    texts: StepTexts
    queries: Tensor
    documents: Tensor


class StudentStep(nn.Module):
    """Call it on a batch: `{"loss": weighted sum, "<term>": value, "<term>.<parameter>": learned value}`, scalars.

    Args:
        student: trained in place.
        objective: the job's terms; weight 0 is computed and shown, but adds nothing.
        encoding: how texts go through the encoder; losses are always computed in fp32.
        previous: the student as it was before this job, for terms that need it (`needs_previous_student`); constant.
        momentum: a queue of earlier documents, if any.
        ema_decay: keep a slow copy of the student to export in its place; None: none.
        remembered: ids of all queries, if what each of them costs is to be remembered (pacing, teacher budget).
        workers: who trains together.
    """

    facts: StepFacts | None = None

    def __init__(
        self,
        student: DualEncoder,
        objective: Sequence[ObjectiveTerm],
        *,
        encoding: EncodingSettings = _PLAIN,
        previous: DualEncoder | None = None,
        momentum: MomentumSpec | None = None,
        ema_decay: float | None = None,
        remembered: Sequence[str] = (),
        workers: Workers = ALONE,
    ) -> None:
        super().__init__()
        if previous is None and needs_previous_student(objective):
            raise ValueError("the objective compares with a previous student, and none is given")
        self.student = student
        self.learned = LearnedParameters(objective).to(student.device)
        self.averaged = SlowCopy(student, decay=ema_decay) if ema_decay is not None else None
        self.momentum = SlowCopy(student, decay=momentum.decay) if momentum else None
        self.queue = DocumentQueue(momentum.queue_size, student.hidden_size).to(student.device) if momentum else None
        self.query_losses = QueryLosses(len(remembered)).to(student.device) if remembered else None
        self.query_row = {query_id: row for row, query_id in enumerate(remembered)}
        self._objective = tuple(objective)
        self.encoding = encoding
        self._workers = workers
        self._previous = (previous,)  # in a tuple: its weights are not this module's

    @property
    def outcome(self) -> DualEncoder:
        """The student to evaluate and export: the averaged one where there is one."""
        return self.averaged.student if self.averaged else self.student

    def forward(self, batch: ListBatch, texts: StepTexts | None = None) -> dict[str, Tensor]:
        """Losses of one batch, tokenised in `texts` or here; gradient flows to the student and learned parameters."""
        student = self.student
        self.learned.keep_in_bounds()
        texts = texts or StepTexts.of(student, batch)
        pooled_queries, pooled_documents = encode_texts(student, texts, self.encoding, self._workers)
        queries, documents = student.views(pooled_queries), student.views(pooled_documents)
        self.facts = StepFacts(batch, texts, queries.served.detach(), documents.served.detach())
        earlier = self._previous_embeddings(texts)
        queued = self._queued(batch)
        dimensions = _sampled_dimensions(student)
        values = [
            self._term_values(
                batch,
                _cut(student, queries, size),
                _cut(student, documents, size),
                earlier,
                Queued(_cut(student, queued.views, size), queued.relevant) if queued else None,
                size,
            )
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

    @torch.no_grad()
    def follow_weights(self) -> None:
        """After an optimizer step: slow copies follow, the batch's documents join the queue, losses are remembered."""
        if self.averaged:
            self.averaged.follow(self.student)
        if self.momentum and self.queue is not None and self.facts:
            self.momentum.follow(self.student)
            texts = self.facts.texts.documents()
            _, documents = encode_texts(self.momentum.student, texts, self.encoding, self._workers)
            self.queue.put(documents, text_keys(self.facts.batch.document_texts))
        if self.query_losses is not None and self.facts:
            self._remember(self.query_losses, self.facts)

    def _remember(self, losses: QueryLosses, facts: StepFacts) -> None:
        """How far the student was from the teacher on each list, at the temperatures of the job's list_kl term."""
        term = next((term for term in self._objective if isinstance(term, ListKL)), ListKL(name="list_kl"))
        device = facts.queries.device
        found = list_losses(
            list_scores(facts.batch, facts.queries, facts.documents),
            facts.batch.teacher_logits.to(device),
            facts.batch.mask.to(device),
            temperature=term.temperature,
            teacher_temperature=term.teacher_temperature,
        )
        rows = torch.tensor([self.query_row[query_id] for query_id in facts.batch.query_ids])
        losses.update(rows, found)

    def _queued(self, batch: ListBatch) -> Queued | None:
        if self.momentum is None or self.queue is None or len(self.queue) == 0:
            return None
        keys = self.queue.keys[: len(self.queue)]
        relevant = [torch.isin(keys, text_keys(sorted(known)).to(keys.device)) for known in batch.known_relevant]
        return Queued(self.queue.views(self.momentum), torch.stack(relevant))

    def _term_values(
        self,
        batch: ListBatch,
        queries: StudentViews,
        documents: StudentViews,
        earlier: dict[str, Tensor],
        queued: Queued | None,
        size: int | None,
    ) -> dict[str, Tensor]:
        spec = self.student.spec
        by_view: dict[str, dict[str, Tensor]] = {}
        values: dict[str, Tensor] = {}
        for term in self._objective:
            info = OBJECTIVES[term.name]
            if term.VIEW not in by_view:
                by_view[term.VIEW] = step_tensors(
                    batch, getattr(queries, term.VIEW), getattr(documents, term.VIEW), queued=queued, view=term.VIEW
                )
            tensors = by_view[term.VIEW] | {
                name: value if size is None else truncated(value, size, normalize=spec.normalize)
                for name, value in earlier.items()
            }
            offered = {name: tensors[name] for name in info.tensors if name in tensors}
            values[term.name] = info.function(**offered, **(term_parameters(term) | self.learned.of(term)))
        return values

    def _previous_embeddings(self, texts: StepTexts) -> dict[str, Tensor]:
        (previous,) = self._previous
        if previous is None:
            return {}
        with torch.no_grad():
            queries, documents = encode_texts(previous, texts, self.encoding, self._workers)
            return {
                "previous_query_embeddings": previous.views(queries).served,
                "previous_document_embeddings": previous.views(documents).served,
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
