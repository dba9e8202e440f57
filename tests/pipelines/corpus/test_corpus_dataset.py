"""What is asked of a Dataset (who is labelled, what do models read, is it the same) has exact answers."""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.corpus.dataset import Dataset
from pipelines.corpus.schema import DOCUMENTS_SCHEMA, QRELS_SCHEMA, QUERIES_SCHEMA
from pipelines.errors import DataError

Rows = Sequence[tuple[object, ...]]


def dataset(documents: Rows, queries: Rows = (("q", "?"),), qrels: Rows = ()) -> Dataset:
    tables = zip((documents, queries, qrels), (DOCUMENTS_SCHEMA, QUERIES_SCHEMA, QRELS_SCHEMA), strict=True)
    return Dataset(
        "toy",
        *(
            pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema)
            for rows, schema in tables
        ),
    )


TOY = dataset(
    [("d1", "Gout", "hurts"), ("d2", "", "text"), ("d3", "title", "")],
    [("q4", "four"), ("q1", "one"), ("q3", "three"), ("q2", "two"), ("q5", "five")],
    [("train", "q1", "d1", 1), ("train", "q4", "d2", 3), ("train", "q3", "d2", 0), ("test", "q2", "d3", 1)],
)


def test_labelled_means_a_positive_and_unlabelled_means_no_judgement_at_all() -> None:
    # q3 is judged 0 only: no positive to learn from, yet somebody looked at it, so it is not in the pool.
    assert TOY.labelled_queries("train") == ["q4", "q1"]
    assert TOY.unlabelled_queries("train", "test") == ["q5"]
    assert TOY.unlabelled_queries("train") == ["q2", "q5"]
    assert TOY.unlabelled_queries() == ["q4", "q1", "q3", "q2", "q5"]


def test_passages_join_title_and_text_without_inventing_spaces() -> None:
    assert TOY.passages() == ["Gout hurts", "text", "title"]
    assert [TOY.passage(doc_id) for doc_id in ("d1", "d2", "d3")] == TOY.passages()
    assert TOY.query_text("q3") == "three"


def test_judged_rows_say_the_same_in_row_numbers() -> None:
    assert TOY.judged_rows("train") == {"q1": {0: 1}, "q4": {1: 3}, "q3": {1: 0}}
    TOY.judged("train")["q1"]["d1"] = 0
    assert TOY.judged("train")["q1"]["d1"] == 1, "callers get copies"


def test_unknown_names_are_refused() -> None:
    with pytest.raises(DataError, match="split 'dev' of data set 'toy' is not loaded; loaded: train, test"):
        TOY.judged("dev")
    with pytest.raises(DataError, match="no document 'nope'"):
        TOY.passage("nope")
    with pytest.raises(DataError, match="no query 'nope'"):
        TOY.query_text("nope")


def test_fingerprint_ignores_qrels_and_arrow_chunking_but_nothing_else() -> None:
    other_queries = replace(TOY, queries=TOY.queries.slice(1))
    assert other_queries.fingerprint != TOY.fingerprint
    relabelled = replace(TOY, qrels=TOY.qrels.slice(0, 1))
    chunked = replace(TOY, documents=pa.concat_tables([TOY.documents.slice(0, 2), TOY.documents.slice(2)]))
    assert relabelled.fingerprint == chunked.fingerprint == TOY.fingerprint


_TEXT = st.text(max_size=6)


@given(st.tuples(_TEXT, _TEXT, _TEXT), st.tuples(_TEXT, _TEXT, _TEXT))
def test_fingerprints_differ_wherever_a_field_differs(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    # Without length prefixes ("ab", "c") and ("a", "bc") would share scores of two different texts.
    assert (dataset([one]).fingerprint == dataset([other]).fingerprint) == (one == other)
