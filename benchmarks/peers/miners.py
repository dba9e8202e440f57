"""One miner in a process of its own: hard negatives of given embeddings, once, with its time and its peak memory.

Both get the same texts and read the same vectors from disk, each in its own way: ours as the memory map that
`embed_corpus` leaves, the peer as an array, as its own cache of embeddings does. The clock starts when the texts are in
memory, and stops when the negatives are there: ours in a Parquet file, the peer's in a `Dataset`. The peak is that of
the process from the start of the clock on. Which rows were found is noted after the clock has stopped.

    python benchmarks/peers/miners.py '{"system": "ours", "data": ..., "found": ..., "negatives": 32, ...}'
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

Found = Callable[[], np.ndarray]
"""Negatives of each query, int64 [queries, negatives]: rows of the documents, -1 where there are fewer."""


def document(row: int) -> str:
    """The text of a document: all that matters is that no two are the same."""
    return f"document {row}"


def query(row: int) -> str:
    """The text of a query."""
    return f"query {row}"


def rows_of(texts: Sequence[str]) -> list[int]:
    """The rows of documents, of their texts."""
    return [int(text.rpartition(" ")[2]) for text in texts]


class Vectors:
    """Stands in for an encoder: the vector of a text is the one on disk with its number."""

    device = torch.device("cpu")

    def __init__(self, data: Path) -> None:
        self.files = {"document": data / "documents.npy", "query": data / "queries.npy"}
        self.dimension = int(np.load(self.files["query"], mmap_mode="r").shape[1])

    def get_embedding_dimension(self) -> int:
        """As `SentenceTransformer.get_embedding_dimension`."""
        return self.dimension

    def encode_batches(self, texts: Sequence[str], kind: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `DualEncoder.encode_batches`."""
        for start in range(0, len(texts), 4096):
            rows = np.array(rows_of(texts[start : start + 4096]))
            yield rows, np.load(self.files[kind], mmap_mode="r")[rows]

    def encode_query(self, texts: Sequence[str], **_: Any) -> np.ndarray:
        """As `SentenceTransformer.encode_query`."""
        return np.array(np.load(self.files["query"], mmap_mode="r")[: len(texts)])

    def encode_document(self, _texts: Sequence[str], **_: Any) -> np.ndarray:
        """As `SentenceTransformer.encode_document`."""
        return np.load(self.files["document"])

    def similarity(self, queries: np.ndarray, documents: np.ndarray) -> torch.Tensor:
        """Inner products: vectors are of unit length, so the peer's cosine would only normalise them once more."""
        from sentence_transformers.util import dot_score

        return dot_score(queries, documents)

    def similarity_pairwise(self, queries: np.ndarray, documents: np.ndarray) -> torch.Tensor:
        """Inner products of pairs."""
        from sentence_transformers.util import pairwise_dot_score

        return pairwise_dot_score(queries, documents)


def ours(settings: dict[str, Any], num_documents: int, positives: np.ndarray) -> Callable[[], Found]:
    """`Miner` with the dense source alone, into a file, as a job mines."""
    import pyarrow as pa

    from pipelines.candidates.miner import EmbeddedCorpus, Miner, mine_once
    from pipelines.corpus.dataset import Dataset
    from pipelines.spec import CandidatesSpec

    texts = [document(row) for row in range(num_documents)]
    queries = [query(row) for row in range(len(positives))]
    dataset = Dataset(
        name="synthetic",
        documents=pa.table({"doc_id": texts, "title": [""] * num_documents, "text": texts}),
        queries=pa.table({"query_id": queries, "text": queries}),
        qrels=pa.table(
            {
                "split": ["train"] * len(queries),
                "query_id": queries,
                "doc_id": [texts[row] for row in positives],
                "relevance": np.ones(len(queries), dtype=np.int32),
            }
        ),
    )
    data, negatives = Path(settings["data"]), settings["negatives"]
    spec = CandidatesSpec.model_validate(
        {"bm25": None, "dense": {"top_k": negatives + 1}, "max_candidates": negatives + 1}
    )
    judged = dataset.judged_rows("train")
    dataset.query_text(queries[0])
    path = Path(settings["found"]).with_suffix(".parquet")

    def mine() -> Found:
        encoder: Any = Vectors(data)
        corpus = EmbeddedCorpus(encoder, np.load(data / "documents.npy", mmap_mode="r"))
        miner = Miner(dataset, spec)
        scratch = path.with_name(f"{path.stem}-queries.npy")
        mined = mine_once(path, lambda: miner.mine_blocks(queries, corpus=corpus, judged=judged, scratch=scratch))

        def found() -> np.ndarray:
            rows = np.full((len(mined), negatives), -1, dtype=np.int64)
            lists = (items for block in mined.blocks() for items in block["candidates"].to_pylist())
            for place, items in enumerate(lists):
                here = rows_of([item["doc_id"] for item in items if item["relevance"] is None])
                rows[place, : len(here)] = here
            return rows

        return found

    return mine


def sentence_transformers(settings: dict[str, Any], num_documents: int, positives: np.ndarray) -> Callable[[], Found]:
    """`mine_hard_negatives`, its defaults but for the number of negatives, batch size and FAISS as in `settings`."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    texts = [document(row) for row in range(num_documents)]
    queries = [query(row) for row in range(len(positives))]
    pairs = Dataset.from_dict({"query": queries, "positive": [texts[row] for row in positives]})
    model: Any = Vectors(Path(settings["data"]))

    def mine() -> Found:
        mined = mine_hard_negatives(
            pairs,
            model,
            corpus=texts,
            num_negatives=settings["negatives"],
            faiss_batch_size=settings["batch"],
            use_faiss=settings["faiss"],
            output_format="n-tuple",
            verbose=False,
        )

        def found() -> np.ndarray:
            rows = np.full((len(queries), settings["negatives"]), -1, dtype=np.int64)
            places = rows_of(mined["query"])
            for number in range(settings["negatives"]):
                rows[places, number] = rows_of(mined[f"negative_{number + 1}"])
            return rows

        return found

    return mine


def resident(name: str) -> float:
    """MiB of this process: `VmRSS` now, or `VmHWM` at most."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(f"{name}:"))


def main() -> None:
    """Mine once, and print seconds and MiB as JSON."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    positives = np.load(Path(settings["data"]) / "positives.npy")[: settings["queries"]]
    num_documents = len(np.load(Path(settings["data"]) / "documents.npy", mmap_mode="r"))
    system = {"ours": ours, "sentence_transformers": sentence_transformers}[settings["system"]]
    mine = system(settings, num_documents, positives)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    start = time.perf_counter()
    found = mine()
    seconds, peak = time.perf_counter() - start, resident("VmHWM")
    np.save(settings["found"], found())
    print(json.dumps({"seconds": seconds, "before_mib": before, "peak_mib": peak}))


if __name__ == "__main__":
    main()
