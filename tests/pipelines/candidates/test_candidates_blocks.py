"""Mining in blocks finds what mining at once finds: no score, rank or tie depends on how the queries are cut."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from candidates_for_tests import WholeNumbers
from tiny import tiny_spec

from pipelines.candidates.dense import QUERY_CHUNK, top_k_inner_product
from pipelines.candidates.miner import QUERIES_PER_BLOCK, EmbeddedCorpus, Miner, embed_corpus, mine_once
from pipelines.corpus.dataset import Dataset
from pipelines.devices import resolve_device
from pipelines.spec import CandidatesSpec
from pipelines.student.model import load_student


def whole_numbers() -> Any:
    return WholeNumbers()


@pytest.fixture(params=["both", "bm25", "dense"])
def spec(request: pytest.FixtureRequest) -> CandidatesSpec:
    sources = {"bm25": {"top_k": 7}, "dense": {"top_k": 5}}
    chosen = {name: value if request.param in ("both", name) else None for name, value in sources.items()}
    return CandidatesSpec.model_validate(chosen | {"max_candidates": 8})


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("queries_per_block", [1, 3, 1000])
def test_blocks_equal_all_at_once(
    dataset: Dataset, spec: CandidatesSpec, tmp_path: Path, queries_per_block: int, on_disk: bool
) -> None:
    corpus = embed_corpus(whole_numbers(), dataset)
    miner, queries = Miner(dataset, spec), dataset.queries["query_id"].to_pylist()
    judged = dataset.judged_rows("train")
    expected = miner.mine(queries, corpus=corpus, judged=judged)
    scratch = tmp_path / "embeddings" / "queries.npy" if on_disk else None
    blocks = miner.mine_blocks(
        queries, corpus=corpus, judged=judged, scratch=scratch, queries_per_block=queries_per_block
    )
    mined = mine_once(tmp_path / "candidates.parquet", lambda: blocks)
    assert mined.read().equals(expected)
    assert [len(block) for block in mined.blocks()][:-1] == [queries_per_block] * (
        (len(queries) - 1) // queries_per_block
    )
    assert sorted(entry.name for entry in tmp_path.rglob("*.npy")) == []


def test_a_real_encoder_finds_the_same_in_blocks(dataset: Dataset, tiny_root: Path, tmp_path: Path) -> None:
    student = load_student(tiny_root / "encoder", tiny_spec().student, dropout=0.0, device=resolve_device())
    corpus = embed_corpus(student, dataset, path=tmp_path / "documents.npy")
    miner, queries = Miner(dataset, tiny_spec().candidates), dataset.queries["query_id"].to_pylist()
    expected = miner.mine(queries, corpus=embed_corpus(student, dataset), judged={})
    found = pa.concat_tables(
        miner.mine_blocks(queries, corpus=corpus, judged={}, queries_per_block=3, scratch=tmp_path / "queries.npy")
    )
    names = ("doc_id", "bm25_rank", "dense_rank", "relevance")
    for mine, given in zip(found["candidates"].to_pylist(), expected["candidates"].to_pylist(), strict=True):
        assert [[item[name] for name in names] for item in mine] == [[item[name] for name in names] for item in given]
        scores = [[item["student_score"] or 0.0 for item in items] for items in (mine, given)]
        np.testing.assert_allclose(*scores, atol=1e-6)


def test_blocks_of_whole_chunks_change_no_bit() -> None:
    assert QUERIES_PER_BLOCK % QUERY_CHUNK == 0
    draw = np.random.default_rng(0)
    queries, documents = (draw.standard_normal((rows, 48), dtype=np.float32) for rows in (3 * QUERY_CHUNK + 9, 700))
    whole = top_k_inner_product(queries, documents, 30)
    parts = [
        top_k_inner_product(queries[start : start + QUERY_CHUNK], documents, 30)
        for start in range(0, len(queries), QUERY_CHUNK)
    ]
    for number in (0, 1):
        assert whole[number].tobytes() == b"".join(part[number].tobytes() for part in parts)


def test_a_fixed_encoder_is_embedded_where_it_is_told(dataset: Dataset, tmp_path: Path) -> None:
    spec = CandidatesSpec.model_validate({"bm25": None, "dense": {"top_k": 4}})
    path = tmp_path / "fixed.npy"
    fixed = Miner(dataset, spec, encoder=whole_numbers(), path=path)
    assert np.load(path).shape == (len(dataset.documents), WholeNumbers.dimension)
    other = EmbeddedCorpus(whole_numbers(), np.zeros((len(dataset.documents), 6), dtype=np.float32))
    queries = dataset.queries["query_id"].to_pylist()
    expected = Miner(dataset, spec).mine(queries, corpus=embed_corpus(whole_numbers(), dataset), judged={})
    assert fixed.mine(queries, corpus=other, judged={}).equals(expected)


def test_no_query_is_a_file_without_rows(dataset: Dataset, tmp_path: Path) -> None:
    miner, corpus = Miner(dataset, CandidatesSpec()), embed_corpus(whole_numbers(), dataset)
    mined = mine_once(tmp_path / "none.parquet", lambda: miner.mine_blocks([], corpus=corpus, judged={}))
    assert (len(mined), len(mined.read()), mined.num_pairs) == (0, 0, 0)
    assert len(miner.mine([], corpus=corpus, judged={})) == 0
