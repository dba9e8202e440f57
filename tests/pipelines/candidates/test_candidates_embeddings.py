"""Embeddings on disk are those in memory, bit for bit, and searching them finds the same."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from candidates_for_tests import WholeNumbers
from tiny import tiny_spec

from pipelines.candidates.dense import top_k_inner_product
from pipelines.candidates.embeddings import let_go, write_embeddings
from pipelines.candidates.miner import embed_corpus
from pipelines.corpus.dataset import Dataset
from pipelines.devices import resolve_device
from pipelines.errors import ModelError
from pipelines.student.model import load_student

Batches = Iterator[tuple[np.ndarray, np.ndarray]]
TEXTS = [f"text {number}" for number in range(23)]


def test_rows_come_in_any_order_and_only_once(tmp_path: Path) -> None:
    encoder, path = WholeNumbers(), tmp_path / "new" / "documents.npy"
    expected = encoder.encode(TEXTS, "document")
    written = write_embeddings(path, expected.shape, encoder.encode_batches(TEXTS, "document"))
    np.testing.assert_array_equal(written, expected)
    assert not written.flags.writeable

    def never() -> Batches:
        raise AssertionError("they are there already")
        yield

    np.testing.assert_array_equal(write_embeddings(path, expected.shape, never()), expected)
    path.unlink()
    np.testing.assert_array_equal(written, expected)


def test_an_encoder_that_dies_leaves_no_file(tmp_path: Path) -> None:
    def dying() -> Batches:
        yield np.array([0]), np.ones((1, 6), dtype=np.float32)
        raise ModelError("NaN")

    path = tmp_path / "documents.npy"
    with pytest.raises(ModelError, match="NaN"):
        write_embeddings(path, (2, 6), dying())
    assert not path.exists()
    whole = write_embeddings(path, (1, 6), iter([(np.array([0]), np.ones((1, 6), dtype=np.float32))]))
    assert whole.tolist() == [[1.0] * 6]
    assert [entry.name for entry in tmp_path.iterdir()] == ["documents.npy"]


def test_searching_a_map_finds_what_searching_memory_finds(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    queries, documents = (draw.standard_normal((rows, 16), dtype=np.float32) for rows in (9, 500))
    mapped = write_embeddings(tmp_path / "documents.npy", documents.shape, iter([(np.arange(500), documents)]))
    for size in (64, 1000):
        here = top_k_inner_product(queries, documents, 20, query_chunk=4, document_chunk=size)
        there = top_k_inner_product(queries, mapped, 20, query_chunk=4, document_chunk=size)
        for mine, given in zip(here, there, strict=True):
            assert mine.tobytes() == given.tobytes()


def test_a_map_with_a_broken_row_is_an_error_with_the_row(tmp_path: Path) -> None:
    documents = np.ones((10, 4), dtype=np.float32)
    documents[7, 2] = np.nan
    mapped = write_embeddings(tmp_path / "documents.npy", documents.shape, iter([(np.arange(10), documents)]))
    with pytest.raises(ModelError, match="1 of 10 document embeddings hold NaN or infinity, first in row 7"):
        top_k_inner_product(documents[:1], mapped, 2, document_chunk=3)


def test_huge_but_finite_embeddings_are_no_error() -> None:
    # Their sum overflows; the fast check must not take that for a broken row.
    huge = np.full((2, 8), 3e38, dtype=np.float32)
    rows, _ = top_k_inner_product(np.full((1, 8), 1e-30, dtype=np.float32), huge, 1)
    assert rows.tolist() == [[0]]


def test_letting_go_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "numbers.npy"
    np.save(path, np.arange(10_000, dtype=np.float32).reshape(-1, 4))
    mapped = np.load(path, mmap_mode="r")
    total = mapped.sum()
    for embeddings in (mapped, mapped[3:], np.ones((1, 2))):
        let_go(embeddings)
    private = np.load(path, mmap_mode="c")
    private[0, 0] = 5
    let_go(private)
    assert (mapped.sum(), private[0, 0]) == (total, 5)


def test_a_corpus_on_disk_is_the_corpus_in_memory(dataset: Dataset, tiny_root: Path, tmp_path: Path) -> None:
    student = load_student(tiny_root / "encoder", tiny_spec().student, dropout=0.0, device=resolve_device())
    here, there = embed_corpus(student, dataset), embed_corpus(student, dataset, path=tmp_path / "documents.npy")
    assert here.documents.tobytes() == np.asarray(there.documents).tobytes()
    queries = [f"what is the cause of {word}" for word in ("heart", "lung")]
    for mine, given in zip(here.search(queries, 5), there.search(queries, 5), strict=True):
        assert mine.tobytes() == given.tobytes()
