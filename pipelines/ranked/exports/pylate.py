"""PyLate: its knowledge-distillation data set of three tables, `train`, `queries` and `documents`.

Enters: chosen lists. Leaves: ids and scores in `train`, each text once in the other two. The only format here that
repeats no text, and the one for lists without a positive. `KDProcessing` of PyLate and `resolve_ids` of
sentence-transformers join the three; both cut a row to its first n as stored, so rows are in teacher order, best first.
"""

from collections.abc import Iterator

import pyarrow as pa

from pipelines.ranked.exports.choice import ChosenList, ExportOptions, Texts
from pipelines.ranked.exports.format import Format, Row, TableSpec

__all__ = ["PYLATE"]

_TRAIN = pa.schema(
    [("query_id", pa.string()), ("document_ids", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))]
)
_QUERIES = pa.schema([("query_id", pa.string()), ("text", pa.string())])
_DOCUMENTS = pa.schema([("document_id", pa.string()), ("text", pa.string())])


def _tables(_: ExportOptions) -> tuple[TableSpec, ...]:
    return (
        TableSpec("train", "parquet", _TRAIN),
        TableSpec("queries", "parquet", _QUERIES, unique_by="query_id"),
        TableSpec("documents", "parquet", _DOCUMENTS, unique_by="document_id"),
    )


def _rows(chosen: ChosenList, texts: Texts, _: ExportOptions) -> Iterator[tuple[str, Row]]:
    yield (
        "train",
        {
            "query_id": chosen.query_id,
            "document_ids": [each.doc_id for each in chosen.candidates],
            "scores": [each.logit for each in chosen.candidates],
        },
    )
    yield "queries", {"query_id": chosen.query_id, "text": texts.query_text(chosen.query_id)}
    for each in chosen.candidates:
        yield "documents", {"document_id": each.doc_id, "text": texts.passage(each.doc_id)}


def _lacks(chosen: ChosenList, _: ExportOptions) -> str | None:
    # A softmax over one candidate is constant: such a row would only look like training data.
    return "fewer than 2 candidates" if len(chosen.candidates) < 2 else None


PYLATE = Format(
    name="pylate",
    summary="PyLate, and resolve_ids of sentence-transformers: tables train (ids and scores), queries, documents",
    usage="""from datasets import load_dataset
from pylate import utils

train, queries, documents = (
    load_dataset("{folder}", name, split="train") for name in ("train", "queries", "documents")
)
train.set_transform(utils.KDProcessing(queries=queries, documents=documents).transform)""",
    tables=_tables,
    rows=_rows,
    lacks=_lacks,
)
