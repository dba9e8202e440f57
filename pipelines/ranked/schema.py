"""The shape of a ranked list, and how mined candidates plus teacher logits become one.

Enters: candidates of some queries (see `candidates.schema`) and one logit per candidate. Leaves: rows of
`RANKED_SCHEMA`, candidates in teacher order, best first. The stored order is the ranking: ties keep mined order,
and readers never sort again.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.errors import RankedListsError

__all__ = [
    "BEFORE_ROUND",
    "EVALUATION_ROUND",
    "PARTITION_COLUMNS",
    "RANKED_SCHEMA",
    "SCHEMA_VERSION",
    "check_schema",
    "dev_round",
    "rank_candidates",
    "round_name",
]

EVALUATION_ROUND = -1
"""Lists of test queries live in this round; no training reader ever asks for it."""
BEFORE_ROUND = -2
"""And in this one those that a ranker scored before it learned."""
_DEV_ROUNDS = -10


def dev_round(weights_version: int) -> int:
    """Where the lists of dev queries live that this version of a ranker scored."""
    return _DEV_ROUNDS - weights_version


def round_name(number: int) -> str:
    """What people call the lists of a round."""
    if number <= _DEV_ROUNDS:
        return f"dev lists of ranker version {_DEV_ROUNDS - number}"
    return {EVALUATION_ROUND: "test lists", BEFORE_ROUND: "test lists before training"}.get(number, f"round {number}")


_CANDIDATE = pa.struct(
    [
        ("doc_id", pa.string()),
        ("teacher_logit", pa.float32()),
        ("student_score", pa.float32()),
        ("bm25_rank", pa.int32()),
        ("dense_rank", pa.int32()),
        ("relevance", pa.int8()),
    ]
)

RANKED_SCHEMA = pa.schema(
    [
        ("job_id", pa.string()),
        ("round", pa.int32()),
        ("query_id", pa.string()),
        ("chunk_id", pa.int32()),
        ("weights_version", pa.int32()),
        ("candidates", pa.list_(_CANDIDATE)),
        ("miner", pa.string()),
    ]
)
"""`miner`: the state of the student that found the candidates, a hash or `untrained`; null where nobody said."""
_ADDED_LATER = frozenset({"miner"})

PARTITION_COLUMNS = ("job_id", "round")
SCHEMA_VERSION = 1
"""Rule of evolution: a new column or a new field of a candidate is nullable, comes last, and leaves this number alone
(readers take what they know); anything else raises it, and code refuses tables of a higher number than its own."""


def check_schema(schema: pa.Schema, version: int, *, where: str) -> None:
    """Refuse a table that this code would read wrongly.

    Raises:
        RankedListsError: it is of a later schema version, or a column is missing or of another type.
    """
    if version > SCHEMA_VERSION:
        raise RankedListsError(
            f"{where}: schema version {version} is newer than this dualdistill reads ({SCHEMA_VERSION}); update it"
        )
    for expected in RANKED_SCHEMA:
        place = schema.get_field_index(expected.name)
        if place < 0 and expected.name in _ADDED_LATER:
            continue
        if place < 0:
            raise RankedListsError(f"{where}: ranked lists have no column {expected.name!r}")
        _check_type(expected.type, schema.field(place).type, where=where, column=expected.name)


def _check_type(expected: pa.DataType, found: pa.DataType, *, where: str, column: str) -> None:
    if pa.types.is_list(expected) and pa.types.is_list(found):
        _check_type(expected.value_type, found.value_type, where=where, column=column)
    elif pa.types.is_struct(expected) and pa.types.is_struct(found):
        for field in expected:
            place = found.get_field_index(field.name)
            if place < 0:
                raise RankedListsError(f"{where}: candidates have no field {field.name!r}")
            _check_type(field.type, found.field(place).type, where=where, column=f"{column}.{field.name}")
    elif found != expected:
        raise RankedListsError(f"{where}: column {column!r} is {found}, expected {expected}")


def rank_candidates(
    candidates: pa.Table,
    logits: npt.NDArray[np.float32],
    *,
    job_id: str,
    round_number: int,
    chunk_id: int,
    weights_version: int,
    miner: str | None = None,
) -> pa.Table:
    """Sort each query's candidates by teacher logit, best first (stable).

    Args:
        candidates: [queries] rows of the candidates schema.
        logits: float32 [total candidates], in the order of the flattened candidate lists.
        job_id: filed under.
        round_number: filed under.
        chunk_id: filed under.
        weights_version: of the teacher that made the logits.
        miner: which state of the student found the candidates, where that is known.

    Returns:
        A table of `RANKED_SCHEMA`, queries in the order given.

    Raises:
        RankedListsError: the number of logits is not that of candidates, or one is not finite.
    """
    column = candidates["candidates"].combine_chunks()
    lengths = np.asarray(column.value_lengths().fill_null(0), dtype=np.int64)
    total = int(lengths.sum())
    if len(logits) != total:
        raise RankedListsError(f"chunk {chunk_id} has {total} candidates but {len(logits)} logits")
    if not np.isfinite(logits).all():
        raise RankedListsError(f"chunk {chunk_id} has a logit that is not finite: {logits[~np.isfinite(logits)][0]}")
    query_of = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((np.arange(total), -logits, query_of))
    flat = column.flatten().take(pa.array(order))
    ranked = pa.StructArray.from_arrays(
        [
            flat.field("doc_id"),
            pa.array(logits[order], type=pa.float32()),
            flat.field("student_score"),
            flat.field("bm25_rank"),
            flat.field("dense_rank"),
            flat.field("relevance"),
        ],
        fields=list(_CANDIDATE),
    )
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    rows = len(lengths)
    return pa.table(
        {
            "job_id": pa.array([job_id] * rows, type=pa.string()),
            "round": pa.array([round_number] * rows, type=pa.int32()),
            "query_id": candidates["query_id"],
            "chunk_id": pa.array([chunk_id] * rows, type=pa.int32()),
            "weights_version": pa.array([weights_version] * rows, type=pa.int32()),
            "candidates": pa.ListArray.from_arrays(pa.array(offsets), ranked),
            "miner": pa.array([miner] * rows, type=pa.string()),
        },
        schema=RANKED_SCHEMA,
    )
