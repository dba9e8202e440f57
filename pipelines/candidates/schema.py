"""The schema in which mined candidates travel to the teacher.

Enters: nothing. Leaves: `CANDIDATES_SCHEMA`. One row per query, in the order the queries were given.
"""

import pyarrow as pa

__all__ = ["CANDIDATES_SCHEMA", "CANDIDATE_TYPE"]

CANDIDATE_TYPE = pa.struct(
    [
        ("doc_id", pa.string()),
        ("student_score", pa.float32()),
        ("bm25_rank", pa.int32()),
        ("dense_rank", pa.int32()),
        ("relevance", pa.int8()),
    ]
)
"""`student_score`: inner product, null if the dense source did not find the document. Ranks count from 0;
null if that source did not find it. `relevance`: null = unjudged."""

CANDIDATES_SCHEMA = pa.schema([("query_id", pa.string()), ("candidates", pa.list_(CANDIDATE_TYPE))])
"""Judged positives come first, then the mined documents, most promising first."""
