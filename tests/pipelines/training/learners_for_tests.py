"""A student as it starts and a batch of labelled lists, for every test of what is learned from them."""

from pathlib import Path

import pyarrow as pa
import torch
from tiny import tiny_spec

from pipelines.corpus.dataset import Dataset
from pipelines.ranked.positives import PositiveRule
from pipelines.ranked.tail import StreamPosition
from pipelines.spec import DistillationSpec
from pipelines.student.model import DualEncoder, load_student
from pipelines.training.batches import ListBatch, batches
from pipelines.training.labelled import labelled_rows

CPU = torch.device("cpu")
GOLD = PositiveRule(use_labels=True, teacher_top=False, min_confidence=1.0)


def fresh_student(folder: Path, spec: DistillationSpec | None = None) -> DualEncoder:
    """Without dropout."""
    return load_student(folder, (spec or tiny_spec()).student, dropout=0.0, device=CPU)


def first_batch(dataset: Dataset, labelled: pa.Table, *, width: int = 4, size: int = 6) -> ListBatch:
    """No candidate has a teacher's score."""
    start = StreamPosition()
    rows = labelled_rows(labelled, start=start, seed=0)
    batch, _ = next(batches(rows, dataset, queries_per_step=size, width=width, rule=GOLD, seed=0))
    return batch
