"""The student's side of a step: encode every distinct text once, score lists, add up the objective's terms.

Enters: a `DualEncoder` and a `ListBatch`. Leaves: the total loss and each term's value before its weight.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines.devices import torch_dtype
from pipelines.objective_terms import ObjectiveTerm
from pipelines.objectives.registry import OBJECTIVES, term_parameters
from pipelines.student.model import DualEncoder
from pipelines.training.batches import ListBatch

__all__ = ["student_losses"]


def student_losses(
    student: DualEncoder, batch: ListBatch, objective: Sequence[ObjectiveTerm], *, dtype: str
) -> dict[str, Tensor]:
    """`{"loss": weighted sum, "<term>": value ...}`, scalars; gradient flows to the student.

    Args:
        student: in training mode.
        batch: Q lists over N distinct documents.
        objective: the job's terms; weight 0 is computed and shown, but adds nothing.
        dtype: concrete dtype of the forward pass (autocast); losses are always computed in fp32.
    """
    device = student.device
    with torch.autocast(device.type, dtype=torch_dtype(dtype), enabled=dtype != "fp32"):
        queries = student.embed(batch.query_texts, "query")
        documents = student.embed(batch.document_texts, "document")
    columns = batch.columns.to(device)
    scores = (queries @ documents.T).gather(1, columns)
    lists = (scores, batch.teacher_logits.to(device), batch.mask.to(device))
    available = _data_inputs(batch, columns)
    losses: dict[str, Tensor] = {}
    total = torch.zeros((), device=device)
    for term in objective:
        info = OBJECTIVES[term.name]
        data = {name: available[info.inputs][name] for name in info.data_inputs if name in available[info.inputs]}
        first = lists if info.inputs == "scores" else (queries, documents)
        value = info.function(*first, **data, **term_parameters(term))
        losses[term.name] = value
        if term.weight > 0:
            total = total + term.weight * value
    return {"loss": total, **losses}


def _data_inputs(batch: ListBatch, columns: Tensor) -> dict[str, dict[str, Any]]:
    """What each family of objectives calls `positive` and the rest: a list column, or a document of the batch."""
    device = columns.device
    positive = batch.positive.to(device)
    document = columns.gather(1, positive.clamp(min=0).unsqueeze(1)).squeeze(1)
    return {
        "scores": {"positive": positive, "positives": batch.judged_positive.to(device)},
        "embeddings": {
            "positive": torch.where(positive >= 0, document, -1),
            "excluded": batch.excluded.to(device),
        },
    }
