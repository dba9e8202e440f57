"""A random but consistent batch under the names that objectives ask for, so that one test can call any of them.

Also knows which axes each tensor has (from the registry's vocabulary), so that a test can reorder queries,
candidates or documents and every index follows.
"""

import re

import torch
from torch import Tensor

from pipelines.objectives.registry import OBJECTIVES, TENSORS, term_parameters

QUERIES, CANDIDATES, DOCUMENTS, DIMENSIONS = 5, 6, 17, 8
DIFFERENTIABLE = ("student_scores", "batch_scores", "query_embeddings", "document_embeddings")
Batch = dict[str, Tensor]

REACHABLE = {"margin_mse": {"scale": 8.0}}
"""Parameters under which an objective makes sense for cosines, where its paper's default does not."""


def parameters(name: str, **changed):
    """The defaults of an objective's term, as keyword arguments of its function."""
    return term_parameters(OBJECTIVES[name].term(name=name, **REACHABLE.get(name, {}))) | changed


def call(name: str, batch: Batch, **changed) -> Tensor:
    """The objective on a batch, random draws repeatable."""
    torch.manual_seed(0)
    info = OBJECTIVES[name]
    offered = {tensor: batch[tensor] for tensor in info.tensors if tensor in batch}
    return info.function(**offered, **parameters(name, **changed))


def sample(seed: int, dtype: torch.dtype = torch.float64, *, full: bool = False) -> Batch:
    """Lists that share documents, ragged unless `full`, a positive nearly everywhere, untied teacher logits."""
    generator = torch.Generator().manual_seed(seed)

    def unit(rows: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(rows, DIMENSIONS, generator=generator, dtype=dtype), dim=1)

    queries, documents = unit(QUERIES), unit(DOCUMENTS)
    columns = torch.stack([torch.randperm(DOCUMENTS, generator=generator)[:CANDIDATES] for _ in range(QUERIES)])
    mask = torch.ones(QUERIES, CANDIDATES, dtype=torch.bool)
    if not full:
        mask[1, 4:], mask[3, 5:] = False, False
        columns[~mask] = 0
    positive = torch.tensor([0, 2, 1, -1, 3])
    if full:
        positive[3] = 4
    teacher = (torch.randn(QUERIES, CANDIDATES, generator=generator, dtype=dtype) * 3).masked_fill(~mask, 0)
    batch = {
        "teacher_scores": teacher,
        "mask": mask,
        "positive": positive,
        "positives": torch.arange(CANDIDATES) == positive.unsqueeze(1),
        "columns": columns,
        "query_embeddings": queries,
        "document_embeddings": documents,
        "batch_scores": queries @ documents.T,
        "same_query": torch.eye(QUERIES, dtype=torch.bool),
        "previous_query_embeddings": unit(QUERIES),
        "previous_document_embeddings": unit(DOCUMENTS),
    }
    return completed(batch)


def completed(batch: Batch) -> Batch:
    """The batch with everything that follows from its lists, teacher, positives and batch scores."""
    columns, mask, positive = batch["columns"], batch["mask"], batch["positive"]
    shape = batch["batch_scores"].shape
    scored, relevant = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    teacher = torch.zeros(shape, dtype=batch["teacher_scores"].dtype)
    rows, places = mask.nonzero(as_tuple=True)
    scored[rows, columns[rows, places]] = True
    teacher[rows, columns[rows, places]] = batch["teacher_scores"][rows, places]
    document = columns.gather(1, positive.clamp(min=0).unsqueeze(1)).squeeze(1)
    document = torch.where(positive >= 0, document, -1)
    judged = positive >= 0
    relevant[judged, document[judged]] = True
    return batch | {
        "student_scores": batch["batch_scores"].gather(1, columns),
        "positive_document": document,
        "relevant": relevant,
        "scored": scored,
        "batch_teacher_scores": teacher,
    }


def axes(name: str) -> tuple[str, ...]:
    """Names of a tensor's axes, as the vocabulary states them: ("queries", "candidates")."""
    (inside,) = re.findall(r"^\[([a-z, ]+)\]", TENSORS[name])
    return tuple(inside.split(", "))


def reordered(batch: Batch, axis: str, order: Tensor) -> Batch:
    """The same batch with one axis in another order; columns and positives point to where things went."""
    place = order.argsort()

    def followed(index: Tensor) -> Tensor:
        return torch.where(index >= 0, place[index.clamp(min=0)], -1)

    moved = {}
    for name, value in batch.items():
        for dimension, of in enumerate(axes(name)):
            value = value.index_select(dimension, order) if of == axis else value  # noqa: PLW2901
        moved[name] = value
    if axis == "candidates":
        moved["positive"] = followed(moved["positive"])
    if axis == "documents":
        moved["columns"] = followed(moved["columns"])
        moved["positive_document"] = followed(moved["positive_document"])
    return moved


def first_query(batch: Batch, *, times: int) -> Batch:
    """A batch of the first query alone, as often as asked."""
    many = {
        name: value[:1].repeat(times, *[1] * (value.ndim - 1)) if axes(name)[0] == "queries" else value
        for name, value in batch.items()
    }
    return many | {"same_query": torch.ones(times, times, dtype=torch.bool)}


def value_and_gradients(name: str, batch: Batch, **changed) -> tuple[Tensor, Batch]:
    """Loss and gradient per differentiable tensor that the objective reads."""
    leaves = {
        tensor: batch[tensor].clone().requires_grad_()
        for tensor in OBJECTIVES[name].tensors
        if tensor in DIFFERENTIABLE
    }
    loss = call(name, batch | leaves, **changed)
    loss.backward()
    return loss.detach(), {
        tensor: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for tensor, leaf in leaves.items()
    }
