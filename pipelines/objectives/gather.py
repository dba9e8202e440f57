"""All workers' documents as negatives for one worker's queries: the cheap one of two ways to a batch of all workers.

    L = mean over workers w of  loss(queries of w, documents of all workers)

Enters: what one worker holds. Leaves: all documents, in worker order, with gradient to the worker each came from, and
the positives and relevance of this worker's queries among them. Two things go wrong in such code elsewhere and are held
by tests here: a label offset that forgets the hard negatives points at other workers' documents; and a document that
two workers drew becomes a negative of the query it belongs to. The last is why documents carry keys.

Why two ways: each worker computes [its queries, all documents] here and [all queries, all documents] in
`gather_everything`, which with 64 workers of 64 queries and 512 documents each is 8 MiB or 512 MiB per matrix. So this
way is for losses that are a mean over queries of what each query says about documents: info_nce, siglip, dcl, cmim,
amcl and (but for its draws) mochi as their terms default, decoupled_softmax and soft_top_k. Whatever compares queries
with queries, or weighs one against another, needs `gather_everything`: it is right for every objective and option, and
with few workers it costs next to nothing beside the encoders.

Backward adds up, for each document, what all workers' losses say about it. So averaging parameter gradients over
workers, as data parallel training does, gives the gradient of the mean of the workers' losses. That is the loss of one
process on the concatenated batch if all workers have as many queries with a positive, or if each multiplies its loss
by `query_share`.

Without a process group, or alone in it, everything is returned as it came.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_bool_like, require_indices
from pipelines.objectives.gather_rows import gather_padded, row_counts, several_workers

__all__ = [
    "NO_DOCUMENT",
    "GatheredBatch",
    "checked_relevance",
    "gather_batch",
    "query_share",
    "relevant_by_key",
    "text_keys",
]

NO_DOCUMENT = -1
"""Key that stands for no document, where rows of keys are of different lengths."""


@dataclass(frozen=True)
class GatheredBatch:
    """What a contrastive objective takes beside this worker's query embeddings.

    Attributes:
        document_embeddings: [all documents, dimensions], worker 0's first.
        positive_document: [queries] int64 into all documents, -1 = none.
        relevant: [queries, all documents] bool, copies of relevant documents on other workers included.
        first_document: row of this worker's first document.
    """

    document_embeddings: Tensor
    positive_document: Tensor
    relevant: Tensor
    first_document: int

    def among_all(self, pairs: Tensor) -> Tensor:
        """[queries, this worker's documents], say `scored`, as [queries, all documents]; 0 or False elsewhere."""
        wide = pairs.new_zeros((len(pairs), len(self.document_embeddings)))
        wide[:, self.first_document : self.first_document + pairs.shape[1]] = pairs
        return wide


def text_keys(texts: Iterable[str]) -> Tensor:
    """int64 [texts], the same for the same text on every worker (Python's own `hash` is not); never `NO_DOCUMENT`."""
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return torch.tensor([int.from_bytes(digest) >> 1 for digest in digests], dtype=torch.int64)


def gather_batch(
    document_embeddings: Tensor,
    positive_document: Tensor,
    relevant: Tensor | None,
    document_keys: Tensor,
    *,
    relevant_keys: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> GatheredBatch:
    """Every worker calls it once per step, with as many documents as it has, and goes backward once.

    Args:
        document_embeddings: [documents, dimensions] of this worker.
        positive_document: [queries] int64, row of each query's positive in them, -1 = none.
        relevant: [queries, documents] bool, documents of this worker known to be relevant; None = only the positive.
        document_keys: [documents] int64, equal where texts are equal (`text_keys`), not `NO_DOCUMENT`.
        relevant_keys: [queries, any width] int64, keys of all documents known to be relevant, `NO_DOCUMENT` to fill
            rows up: other workers may hold one that this worker's batch does not. None = those in `relevant`.
        group: whose workers; None = all.

    Raises:
        ObjectiveError: shapes or dtypes disagree, on this worker or between workers.
    """
    relevant = checked_relevance(document_embeddings, positive_document, relevant, document_keys, relevant_keys)
    if not several_workers(group):
        return GatheredBatch(document_embeddings, positive_document, relevant, 0)
    document_keys = document_keys.to(document_embeddings.device)
    counts = row_counts(document_embeddings, group)
    offset = sum(counts[: dist.get_rank(group)])
    documents = gather_padded(document_embeddings, counts, group)
    keys = gather_padded(document_keys, counts, group)
    return GatheredBatch(
        documents,
        torch.where(positive_document >= 0, positive_document + offset, -1),
        relevant_by_key(relevant, document_keys, relevant_keys, keys),
        offset,
    )


def query_share(positive_document: Tensor, *, group: dist.ProcessGroup | None = None) -> float:
    """Number of workers times this worker's share of the queries that have a positive; 1 where all have equally many.

    A loss that is a mean over those queries, times this, averages over workers to the mean over all queries.
    """
    if not several_workers(group):
        return 1.0
    mine = (positive_document >= 0).sum()
    everyone = mine.clone()
    dist.all_reduce(everyone, group=group)
    return dist.get_world_size(group) * int(mine) / max(int(everyone), 1)


def checked_relevance(
    documents: Tensor, positive: Tensor, relevant: Tensor | None, keys: Tensor, relevant_keys: Tensor | None
) -> Tensor:
    """[queries, documents] bool with the positive counted in.

    Raises:
        ObjectiveError: shapes or dtypes disagree.
    """
    require_indices("gather", "positive_document", positive, rows=len(positive), width=len(documents))
    if documents.ndim != 2 or keys.shape != (len(documents),) or keys.dtype != torch.int64:
        raise ObjectiveError(
            f"gather: needs [documents, dimensions] and one int64 key per document, "
            f"got {tuple(documents.shape)} and {keys.dtype} of shape {tuple(keys.shape)}"
        )
    if relevant_keys is not None and (relevant_keys.ndim != 2 or len(relevant_keys) != len(positive)):
        raise ObjectiveError(
            f"gather: relevant_keys must be [{len(positive)} queries, any width], got {tuple(relevant_keys.shape)}"
        )
    is_positive = torch.arange(len(documents), device=positive.device) == positive.unsqueeze(1)
    if relevant is None:
        return is_positive
    require_bool_like("gather", "relevant", relevant, is_positive)
    return relevant | is_positive


def relevant_by_key(relevant: Tensor, own_keys: Tensor, relevant_keys: Tensor | None, all_keys: Tensor) -> Tensor:
    """[queries, all documents]: is the document, by its key, among those relevant to the query?"""
    ordered = all_keys.sort().values  # a key's first place in it stands for the key
    flags = torch.zeros((len(relevant), len(ordered)), dtype=torch.int32, device=relevant.device)
    flags.index_add_(1, torch.searchsorted(ordered, own_keys), relevant.int())
    if relevant_keys is not None:
        relevant_keys = relevant_keys.to(ordered.device)
        place = torch.searchsorted(ordered, relevant_keys).clamp(max=len(ordered) - 1)
        flags.scatter_add_(1, place, (ordered[place] == relevant_keys).int())
    return flags[:, torch.searchsorted(ordered, all_keys)] > 0
