"""Batches with everything that makes a step hard, from the tiny data set: for workers, caches, queues and resuming.

In each: hard negatives, a document in several lists, a positive whose copy (d59 reads as d0) is another list's
candidate, a query asked twice with different positives, one without a positive, one with two, lists of unequal length.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from chunks_for_tests import confidence_of
from tiny import NUM_POOL, NUM_TRAIN, tiny_spec

from pipelines.corpus.dataset import Dataset
from pipelines.ranked.positives import PositiveRule
from pipelines.ranked.tail import RankedRow, StreamPosition
from pipelines.spec import DistillationSpec
from pipelines.student.model import DualEncoder, load_student
from pipelines.training.batches import ListBatch, batches

GOLD = PositiveRule(use_labels=True, teacher_top=False, min_confidence=1.0)


def ranked_row(query: str, docs: list[str], *, gold: tuple[str, ...] = (), seed: int = 0) -> RankedRow:
    """A list in teacher order, the logits drawn."""
    logits = np.sort(np.random.default_rng(seed).normal(scale=3, size=len(docs)))[::-1].astype(np.float32)
    return RankedRow(
        query_id=query,
        doc_ids=np.array(docs, dtype=np.object_),
        teacher_logits=logits,
        relevance=np.array([1 if doc in gold else -1 for doc in docs], dtype=np.int16),
        confidence=confidence_of(logits.tolist()),
    )


def batch_of(dataset: Dataset, rows: list[RankedRow]) -> ListBatch:
    """One batch of all rows, whole lists."""
    width = max(len(row.doc_ids) for row in rows)
    stream = ((row, StreamPosition(0, place + 1)) for place, row in enumerate(rows))
    ((batch, _),) = batches(stream, dataset, queries_per_step=len(rows), width=width, rule=GOLD, seed=0)
    return batch


def hard_batch(dataset: Dataset, number: int = 0) -> ListBatch:
    """See the module; every number gives other queries and documents."""
    rng = np.random.default_rng(number)
    docs = [f"d{place}" for place in rng.permutation(np.arange(1, 59))]
    queries = [f"train{place}" for place in rng.permutation(NUM_TRAIN)[:4]]
    unlabelled = f"pool{NUM_TRAIN + int(rng.integers(NUM_POOL))}"
    return batch_of(
        dataset,
        [
            ranked_row(queries[0], ["d0", *docs[:4]], gold=("d0",), seed=number),
            ranked_row(queries[1], [docs[0], "d59", *docs[4:7]], gold=(docs[5],), seed=number + 1),
            ranked_row(unlabelled, [docs[2], docs[7], "d0"], seed=number + 2),
            ranked_row(queries[2], docs[8:12], gold=(docs[9], docs[11]), seed=number + 3),
            ranked_row(queries[0], [docs[12], docs[5], docs[8]], gold=(docs[12],), seed=number + 4),
            ranked_row(queries[3], [docs[9], docs[13]], gold=(docs[13],), seed=number + 5),
        ],
    )


def spec_of(objective: list[dict[str, Any]], **student: Any) -> DistillationSpec:
    """A spec whose student keeps both layers, so that every objective accepts it."""
    training = {"objective": objective, "candidates_per_query": 5}
    return tiny_spec(training=training, student={"num_layers": None} | student)


def student_of(folder: Path, spec: DistillationSpec, *, dropout: float = 0.0) -> DualEncoder:
    """Always the same one; heads as after some steps, when the two no longer agree."""
    torch.manual_seed(0)
    student = load_student(folder, spec.student, dropout=dropout, device=torch.device("cpu"))
    if student.heads:
        for head in (student.heads.contrastive, student.heads.distillation):
            torch.nn.init.normal_(head.weight, std=0.3)
    return student
