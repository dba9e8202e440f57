"""A ranker measured at several depths: how good the order gets, the more of a student's best passages it may move.

Enters: an exported student and an exported ranker, a BEIR folder. Leaves: depth -> nDCG@10 on the test questions. Both
models are loaded by sentence-transformers, as a user would.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from pipelines.corpus.dataset import load_dataset
from pipelines.evaluation.metrics import evaluate, means
from pipelines.spec import DatasetSpec

__all__ = ["ndcg_at_depths"]


def ndcg_at_depths(
    student: Path, ranker: Path, data: Path, *, depths: Sequence[int], max_length: int
) -> dict[str, float]:
    """nDCG@10 when the ranker orders the student's `depth` best, and those below stay in the student's order.

    Args:
        student: exported folder.
        ranker: exported folder.
        data: in BEIR layout, with the splits `train` and `test`.
        depths: how many passages a question the ranker may move.
        max_length: tokens of a text, and of a pair.
    """
    dataset = load_dataset(DatasetSpec(path=str(data)), data)
    judged = dataset.judged("test")
    questions = [dataset.query_text(query) for query in judged]
    passages, names = dataset.passages(), dataset.documents["doc_id"].to_pylist()
    retriever = SentenceTransformer(str(student), device="cpu")
    retriever.max_seq_length = max_length
    embedded = (retriever.encode(texts, normalize_embeddings=True) for texts in (questions, passages))
    similarity = np.matmul(next(embedded), next(embedded).T)
    best = np.argsort(-similarity, axis=1, kind="stable")[:, : max(*depths, 10)]
    model = CrossEncoder(str(ranker), max_length=max_length, activation_fn=torch.nn.Identity(), device="cpu")
    pairs = [(question, passages[at]) for question, row in zip(questions, best, strict=True) for at in row]
    logits = model.predict(pairs, batch_size=64, show_progress_bar=False).reshape(best.shape)

    def run(depth: int) -> dict[str, dict[str, float]]:
        found = {}
        for query, row, scores in zip(judged, best, logits, strict=True):
            order = [*np.argsort(-scores[:depth], kind="stable"), *range(depth, len(row))]
            found[query] = {names[row[place]]: -float(rank) for rank, place in enumerate(order)}
        return found

    return {str(depth): means(evaluate(judged, run(depth), ["nDCG@10"]))["nDCG@10"] for depth in depths}
