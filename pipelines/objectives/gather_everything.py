"""A step's tensors out of all workers' steps: every worker computes the loss of the whole batch.

    L = loss(queries of all workers, documents of all workers),  the same number on every worker

Enters: the tensors of one worker's step under the names of `pipelines.objectives.registry.TENSORS`, and what tells
texts apart. Leaves: those of the batch that one process would have had, workers' rows one after the other, so that any
objective of the registry may be called with them. Who is whose is decided by text: a document that several workers drew
is a negative of nobody it belongs to, queries of equal text are `same_query` and share what is relevant to them.

The factor: on each worker, backward adds up what all workers' losses say about its rows. They all say the same, so that
is the number of workers times the gradient of L; data parallel training divides by that number when it averages
parameter gradients over workers, and what is left is exactly the gradient of one process. So go backward from L as it
is: no share of queries, no factor, and a parameter of the loss itself (a learned temperature) is right as well. Adding
instead of multiplying one's own gradient costs one more collective; for it, objectives that draw at random may draw
differently on each worker, and the average is the gradient of the mean of their losses.

Why there is `gather_batch` beside it: there the cheaper way is explained. Lists (student_scores, mask, ...) come along
for the objectives that read them and the batch; an objective of lists alone does not need other workers' lists.

Without a process group, or alone in it, everything is returned as it came.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objectives.embedding_batch import shared_by_equal_queries, similarities
from pipelines.objectives.gather import checked_relevance, relevant_by_key
from pipelines.objectives.gather_rows import gather_padded, gather_sizes, several_workers

__all__ = ["gather_everything"]

_QUERY_ROWS = ("query_embeddings", "previous_query_embeddings", "positive")
_DOCUMENT_ROWS = ("document_embeddings", "previous_document_embeddings")
_LISTS = ("teacher_scores", "mask", "positives", "columns")
_BLOCKS = ("batch_teacher_scores", "scored")
_MADE_ANEW = ("positive_document", "relevant", "same_query", "batch_scores", "student_scores")
_KNOWN = (*_QUERY_ROWS, *_DOCUMENT_ROWS, *_LISTS, *_BLOCKS, *_MADE_ANEW)


@dataclass(frozen=True)
class _Sizes:
    """How much each worker holds."""

    queries: list[int]
    documents: list[int]
    widest_list: int
    own: int
    """This worker's place."""

    @property
    def first_document(self) -> int:
        return sum(self.documents[: self.own])


def gather_everything(
    tensors: Mapping[str, Tensor],
    *,
    query_keys: Tensor,
    document_keys: Tensor,
    relevant_keys: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> dict[str, Tensor]:
    """Every worker calls it once per step with the same names, and goes backward once.

    Args:
        tensors: of this worker's step: `query_embeddings`, `document_embeddings`, `positive_document`, and any others
            of the vocabulary.
        query_keys: [queries] int64, equal where texts are equal (`text_keys`).
        document_keys: [documents] int64, likewise, not `NO_DOCUMENT`.
        relevant_keys: [queries, any width] int64, keys of all documents known to be relevant, `NO_DOCUMENT` to fill
            rows up: other workers may hold one that this worker's batch does not. None = those in `relevant`.
        group: whose workers; None = all.

    Returns:
        The same names for the whole batch, and always `relevant` and `same_query`. Embeddings and teacher scores of
        lists carry gradients home; `batch_scores` and `student_scores` are made anew from the embeddings; teacher
        scores of the batch are 0, and `scored` False, between one worker's queries and another's documents.

    Raises:
        ObjectiveError: an unknown name or one of the three missing, shapes or dtypes disagree, on this worker or
            between workers, or other names elsewhere.
    """
    relevant = _checked(tensors, query_keys, document_keys, relevant_keys)
    if not several_workers(group):
        return dict(tensors)
    device = tensors["query_embeddings"].device
    query_keys, document_keys = query_keys.to(device), document_keys.to(device)
    sizes = _agreed_sizes(tensors, group)
    whole = {
        name: gather_padded(tensors[name], counts, group)
        for names, counts in ((_QUERY_ROWS, sizes.queries), (_DOCUMENT_ROWS, sizes.documents))
        for name in names
        if name in tensors
    }
    positive = tensors["positive_document"]
    positive = torch.where(positive >= 0, positive + sizes.first_document, -1)
    whole["positive_document"] = gather_padded(positive, sizes.queries, group)
    for name in _LISTS:
        if name in tensors:
            offset = sizes.first_document if name == "columns" else 0
            wide = functional.pad(tensors[name] + offset, (0, sizes.widest_list - tensors[name].shape[1]))
            whole[name] = gather_padded(wide.to(tensors[name].dtype), sizes.queries, group)
    for name in _BLOCKS:
        if name in tensors:
            whole[name] = _gathered_blocks(tensors[name].detach(), sizes, group)

    all_queries = gather_padded(query_keys, sizes.queries, group)
    all_documents = gather_padded(document_keys, sizes.documents, group)
    rows = relevant_by_key(relevant, document_keys, relevant_keys, all_documents)
    whole["same_query"] = all_queries == all_queries.unsqueeze(1)
    whole["relevant"] = shared_by_equal_queries(gather_padded(rows, sizes.queries, group), whole["same_query"])
    if "batch_scores" in tensors or "student_scores" in tensors:
        scores = similarities(whole["query_embeddings"], whole["document_embeddings"])
        if "batch_scores" in tensors:
            whole["batch_scores"] = scores
        if "student_scores" in tensors:
            whole["student_scores"] = scores.gather(1, whole["columns"])
    return whole


def _checked(
    tensors: Mapping[str, Tensor], query_keys: Tensor, document_keys: Tensor, relevant_keys: Tensor | None
) -> Tensor:
    """`relevant` with the positive counted in, once everything fits together on this worker."""
    needed = {"query_embeddings", "document_embeddings", "positive_document"}
    needed |= {"columns"} if "student_scores" in tensors else set()
    if needed - set(tensors) or set(tensors) - set(_KNOWN):
        raise ObjectiveError(
            f"gather: needs {sorted(needed)}, lacks {sorted(needed - set(tensors))}; "
            f"does not know {sorted(set(tensors) - set(_KNOWN))}"
        )
    queries, documents = tensors["query_embeddings"], tensors["document_embeddings"]
    if query_keys.shape != (len(queries),) or query_keys.dtype != torch.int64:
        raise ObjectiveError(
            f"gather: needs one int64 key per query, {len(queries)}, "
            f"got {query_keys.dtype} of shape {tuple(query_keys.shape)}"
        )
    width = next((tensors[name].shape[-1] for name in _LISTS if name in tensors), 0)
    shapes = {
        **dict.fromkeys(_QUERY_ROWS[:2], (len(queries), queries.shape[-1])),
        **dict.fromkeys(_DOCUMENT_ROWS, (len(documents), queries.shape[-1])),
        **dict.fromkeys(_LISTS, (len(queries), width)),
        **dict.fromkeys(_BLOCKS, (len(queries), len(documents))),
    }
    for name, shape in shapes.items():
        if name in tensors and tensors[name].shape != shape:
            raise ObjectiveError(f"gather: {name} must have shape {shape}, got {tuple(tensors[name].shape)}")
    return checked_relevance(
        documents, tensors["positive_document"], tensors.get("relevant"), document_keys, relevant_keys
    )


def _agreed_sizes(tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> _Sizes:
    """One collective for all counts; workers of other dimensions or with other tensors are found before they hang."""
    queries, documents = tensors["query_embeddings"], tensors["document_embeddings"]
    names = sum(1 << place for place, name in enumerate(_KNOWN) if name in tensors)
    width = max((tensors[name].shape[1] for name in _LISTS if name in tensors), default=0)
    mine = [names, len(queries), len(documents), width, queries.shape[1]]
    everyone = gather_sizes(mine, queries.device, group)
    held, query_counts, document_counts, widths, dimensions = (list(numbers) for numbers in zip(*everyone, strict=True))
    if len(set(dimensions)) > 1:
        raise ObjectiveError(f"gather: workers' embeddings have different dimensions, {dimensions}")
    if len(set(held)) > 1:
        named = [[name for place, name in enumerate(_KNOWN) if bits >> place & 1] for bits in held]
        raise ObjectiveError(f"gather: workers offer different tensors, {named}")
    return _Sizes(query_counts, document_counts, max(widths), dist.get_rank(group))


def _gathered_blocks(pairs: Tensor, sizes: _Sizes, group: dist.ProcessGroup | None) -> Tensor:
    """[queries, own documents] of each worker as [all queries, all documents], 0 or False between workers."""
    padded = functional.pad(pairs, (0, max(sizes.documents) - pairs.shape[1]))
    rows = gather_padded(padded, sizes.queries, group)
    wide = rows.new_zeros((len(rows), sum(sizes.documents)))
    row = column = 0
    for height, width in zip(sizes.queries, sizes.documents, strict=True):
        wide[row : row + height, column : column + width] = rows[row : row + height, :width]
        row, column = row + height, column + width
    return wide
