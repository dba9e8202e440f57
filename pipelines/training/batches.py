"""From ranked rows to tensors: which candidates of a list are used, which one is the positive, each document once.

Enters: `RankedRow`s with their stream positions. Leaves: `ListBatch`es. What a row contributes depends on
its place in the stream and the seed only, so a resumed run draws what the uninterrupted one would have.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.corpus.dataset import Dataset
from pipelines.objectives.simans import draw_simans
from pipelines.ranked.positives import PositiveRule
from pipelines.ranked.tail import RankedRow, StreamPosition
from pipelines.spec import NegativeSampling

__all__ = ["ChosenList", "ListBatch", "batches", "choose"]

_MIXED = NegativeSampling()


@dataclass(frozen=True)
class ChosenList:
    """The candidates of one query that take part in a step, in list order."""

    query_id: str
    doc_ids: tuple[str, ...]
    teacher_logits: npt.NDArray[np.float32]
    judged_positive: npt.NDArray[np.bool_]
    positive: int
    """Column of the positive, or -1 if the query has none."""
    other_positives: tuple[str, ...]
    """The query's judged positives but that one, in the list or not; never to serve as negatives for this query."""


@dataclass(frozen=True)
class ListBatch:
    """Q queries with up to K candidates each over N distinct documents."""

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
    relevant: Tensor
    """bool [Q, N], documents known to be relevant, so no negatives: the positive, its copies, other positives."""


def choose(
    row: RankedRow,
    *,
    width: int,
    rule: PositiveRule,
    rng: np.random.Generator,
    negatives: NegativeSampling = _MIXED,
) -> ChosenList | None:
    """At most `width` candidates: as many positives as the rule allows, the others drawn as `negatives` says.

    Returns None for a row from which nothing can be learned: fewer than two candidates.
    """
    relevance = row.relevance if rule.use_labels else np.full_like(row.relevance, -1)
    gold = np.flatnonzero(relevance > 0)
    if len(gold):
        positive_row = int(rng.choice(gold))
    elif rule.teacher_top and len(row.doc_ids) and row.confidence >= rule.min_confidence:
        positive_row = int(row.teacher_logits.argmax())
    else:
        positive_row = -1
    kept = [positive_row] if positive_row >= 0 else []
    if rule.per_query > 1:
        kept += rng.permutation(gold[gold != positive_row])[: rule.per_query - 1].tolist()
    others = np.array([i for i in range(len(row.doc_ids)) if i != positive_row and i not in gold], dtype=np.int64)
    drawn = _draw(row, others, positive_row, room=width - len(kept), negatives=negatives, rng=rng)
    chosen = np.sort(np.concatenate([drawn, kept]).astype(np.int64))
    if len(chosen) < 2:
        return None
    return ChosenList(
        query_id=row.query_id,
        doc_ids=tuple(row.doc_ids[i] for i in chosen),
        teacher_logits=row.teacher_logits[chosen],
        judged_positive=relevance[chosen] > 0,
        positive=int(np.flatnonzero(chosen == positive_row)[0]) if positive_row >= 0 else -1,
        other_positives=tuple(row.doc_ids[i] for i in gold if i != positive_row),
    )


def _draw(
    row: RankedRow,
    others: npt.NDArray[np.int64],
    positive_row: int,
    *,
    room: int,
    negatives: NegativeSampling,
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """At most `room` of the rows `others`, which stand in list order."""
    if negatives.strategy == "simans" and positive_row >= 0:
        places = draw_simans(
            row.teacher_logits[others],
            float(row.teacher_logits[positive_row]),
            count=room,
            rng=rng,
            a=negatives.a,
            b=negatives.b,
            form=negatives.form,
        )
        return others[places]
    hardest = others[: (room + 1) // 2]
    return np.concatenate([hardest, rng.permutation(others[len(hardest) :])[: room - len(hardest)]])


def batches(
    rows: Iterable[tuple[RankedRow, StreamPosition]],
    dataset: Dataset,
    *,
    queries_per_step: int,
    width: int,
    rule: PositiveRule,
    seed: int,
    negatives: NegativeSampling = _MIXED,
) -> Iterator[tuple[ListBatch, StreamPosition]]:
    """Batches of `queries_per_step` usable rows (the last may be smaller), each with the position after it.

    Rows without teacher scores (`labelled_rows`) want the default: SimANS would take them for ties.
    """
    chosen: list[ChosenList] = []
    following = StreamPosition()
    for row, following in rows:
        rng = np.random.default_rng((seed, row.place.epoch, row.place.ordinal))
        picked = choose(row, width=width, rule=rule, rng=rng, negatives=negatives)
        if picked is not None:
            chosen.append(picked)
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
    texts = [dataset.passage(doc_id) for doc_id in place]
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
        query_texts=[dataset.query_text(item.query_id) for item in lists],
        document_texts=texts,
        columns=columns,
        mask=mask,
        teacher_logits=teacher,
        judged_positive=judged,
        positive=torch.tensor([item.positive for item in lists], dtype=torch.int64),
        relevant=torch.tensor([[text in known for text in texts] for known in _known_relevant(lists, dataset)]),
    )


def _known_relevant(lists: list[ChosenList], dataset: Dataset) -> list[set[str]]:
    """Per list the texts that are known to be relevant; queries of equal text share them."""
    by_query: dict[str, set[str]] = {}
    for item in lists:
        positive = item.doc_ids[item.positive : item.positive + 1] if item.positive >= 0 else ()
        known = by_query.setdefault(dataset.query_text(item.query_id), set())
        known.update(dataset.passage(doc_id) for doc_id in (*item.other_positives, *positive))
    return [by_query[dataset.query_text(item.query_id)] for item in lists]
