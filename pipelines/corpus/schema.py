"""The Arrow schemas of a data set, which every reader of this room must fill.

Enters: nothing. Leaves: the three schemas and `CorpusTables`, so that the readers (`beir`, `triples`) and
`dataset` agree without importing each other.
"""

from typing import NamedTuple

import pyarrow as pa

__all__ = ["DOCUMENTS_SCHEMA", "QRELS_SCHEMA", "QUERIES_SCHEMA", "CorpusTables"]

DOCUMENTS_SCHEMA = pa.schema([("doc_id", pa.string()), ("title", pa.string()), ("text", pa.string())])
"""One row per document; `doc_id` unique, `title` is "" where there is none."""

QUERIES_SCHEMA = pa.schema([("query_id", pa.string()), ("text", pa.string())])
"""One row per query; `query_id` unique."""

QRELS_SCHEMA = pa.schema(
    [("split", pa.string()), ("query_id", pa.string()), ("doc_id", pa.string()), ("relevance", pa.int32())]
)
"""One row per judgement; (split, query_id, doc_id) unique, a relevance above 0 is a positive."""


class CorpusTables(NamedTuple):
    """What a reader returns: the tables of one data set, already checked."""

    documents: pa.Table
    queries: pa.Table
    qrels: pa.Table
