"""From ranked rows to tensors: the chosen candidates of Q lists over their N distinct documents.

Enters: `RankedRow`s with their stream positions. Leaves: `ListBatch`es. What a row contributes depends on
its place in the stream and the seed only, so a resumed run draws what the uninterrupted one would have.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipelines.corpus.dataset import Dataset
from pipelines.ranked.positives import PositiveRule
from pipelines.ranked.tail import RankedRow, StreamPosition
from pipelines.spec import NegativeSampling
from pipelines.training.sampling import ChosenList, choose

__all__ = ["ListBatch", "batches"]

_MIXED = NegativeSampling()


@dataclass(frozen=True)
class ListBatch:
    """Q queries with up to K candidates each over N distinct documents."""

    query_ids: list[str]
    query_texts: list[str]
    document_texts: list[str]
    columns: Tensor
    """int64 [Q, K], rows of `document_texts`; 0 where `mask` is False."""
    mask: Tensor
    """bool [Q, K], True where there is a candidate."""
    teacher_logits: Tensor
    """float32 [Q, K], 0 where `mask` is False."""
    judged_positive: Tensor
    """bool [Q, K]."""
    positive: Tensor
    """int64 [Q], column of the positive in the list, -1 for none."""
    known_relevant: list[set[str]]
    """Texts known to be relevant to each query, whether in the batch or not: its positives, judged or chosen."""
    relevant: Tensor
    """bool [Q, N], documents known to be relevant, so no negatives: the positive, its copies, other positives."""


def batches(
    rows: Iterable[tuple[RankedRow, StreamPosition]],
    dataset: Dataset,
    *,
    queries_per_step: int,
    width: int,
    rule: PositiveRule,
    seed: int,
    negatives: NegativeSampling = _MIXED,
    takes_part: Callable[[RankedRow], bool] = lambda _: True,
) -> Iterator[tuple[ListBatch, StreamPosition]]:
    """Batches of `queries_per_step` usable rows (the last may be smaller), each with the position after it.

    Rows without teacher scores (`labelled_rows`) want the default: SimANS would take them for ties. A row that does not
    take part is passed over, as one of fewer than two candidates is.
    """
    chosen: list[ChosenList] = []
    following = StreamPosition()
    for row, following in rows:
        if takes_part(row):
            rng = np.random.default_rng((seed, row.place.epoch, row.place.ordinal))
            picked = choose(row, width=width, rule=rule, rng=rng, negatives=negatives)
            chosen += [picked] if picked is not None else []
        if len(chosen) == queries_per_step:
            yield _collate(chosen, dataset), following
            chosen = []
    if chosen:
        yield _collate(chosen, dataset), following


def _collate(lists: list[ChosenList], dataset: Dataset) -> ListBatch:
    place: dict[str, int] = {}
    for item in lists:
        for doc_id in item.doc_ids:
            place.setdefault(doc_id, len(place))
    texts, known = [dataset.passage(doc_id) for doc_id in place], _known_relevant(lists, dataset)
    shape = (len(lists), max(len(item.doc_ids) for item in lists))
    columns = torch.zeros(shape, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.bool)
    teacher = torch.zeros(shape, dtype=torch.float32)
    judged = torch.zeros(shape, dtype=torch.bool)
    for query, item in enumerate(lists):
        size = len(item.doc_ids)
        columns[query, :size] = torch.tensor([place[doc_id] for doc_id in item.doc_ids])
        mask[query, :size] = True
        teacher[query, :size] = torch.from_numpy(item.teacher_logits)
        judged[query, :size] = torch.from_numpy(item.judged_positive)
    return ListBatch(
        query_ids=[item.query_id for item in lists],
        query_texts=[dataset.query_text(item.query_id) for item in lists],
        document_texts=texts,
        columns=columns,
        mask=mask,
        teacher_logits=teacher,
        judged_positive=judged,
        positive=torch.tensor([item.positive for item in lists], dtype=torch.int64),
        known_relevant=known,
        relevant=_relevant(texts, known),
    )


def _relevant(texts: list[str], known: list[set[str]]) -> Tensor:
    """Bool [Q, N]: is the document's text among those known to be relevant to the query?"""
    rows_of: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        rows_of.setdefault(text, []).append(row)
    relevant = torch.zeros((len(known), len(texts)), dtype=torch.bool)
    for query, of_query in enumerate(known):
        relevant[query, [row for text in of_query for row in rows_of.get(text, ())]] = True
    return relevant


def _known_relevant(lists: list[ChosenList], dataset: Dataset) -> list[set[str]]:
    """Per list the texts that are known to be relevant; queries of equal text share them."""
    by_query: dict[str, set[str]] = {}
    for item in lists:
        positive = item.doc_ids[item.positive : item.positive + 1] if item.positive >= 0 else ()
        known = by_query.setdefault(dataset.query_text(item.query_id), set())
        known.update(dataset.passage(doc_id) for doc_id in (*item.other_positives, *positive))
    return [by_query[dataset.query_text(item.query_id)] for item in lists]
