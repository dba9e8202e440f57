"""Dataset: the documents, queries and judgements of one job, checked and frozen.

Enters: a `DatasetSpec` and the folder it resolved to. Leaves: a `Dataset`, the only form in which the rest
of `pipelines` sees data. Only the splits that the spec names are loaded; queries in none of them are the
unlabelled pool.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from pipelines.corpus.beir import looks_like_beir, read_beir
from pipelines.corpus.triples import read_triples, triples_files
from pipelines.errors import DataError
from pipelines.spec import DatasetSpec

__all__ = ["Dataset", "load_dataset"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Tables as in `pipelines.corpus.schema`; row numbers are positions in `documents` and `queries`."""

    name: str
    documents: pa.Table
    queries: pa.Table
    qrels: pa.Table

    @cached_property
    def document_row(self) -> dict[str, int]:
        """doc_id -> row of `documents`."""
        return {key: row for row, key in enumerate(self.documents["doc_id"].to_pylist())}

    @cached_property
    def query_row(self) -> dict[str, int]:
        """query_id -> row of `queries`."""
        return {key: row for row, key in enumerate(self.queries["query_id"].to_pylist())}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of ids and texts of documents and queries in table order; qrels do not count."""
        digest = hashlib.sha256()
        for table in (self.documents, self.queries):
            digest.update(table.num_rows.to_bytes(8, "little"))
            for batch in table.to_batches():
                for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    for value in values:
                        raw = value.encode("utf-8")
                        # Lengths first: otherwise "ab"+"c" and "a"+"bc" would be one data set.
                        digest.update(len(raw).to_bytes(8, "little"))
                        digest.update(raw)
        return digest.hexdigest()

    @cached_property
    def _judgements(self) -> dict[str, dict[str, dict[str, int]]]:
        found: dict[str, dict[str, dict[str, int]]] = {}
        columns = [self.qrels[name].to_pylist() for name in ("split", "query_id", "doc_id", "relevance")]
        for split, query_id, doc_id, relevance in zip(*columns, strict=True):
            found.setdefault(split, {}).setdefault(query_id, {})[doc_id] = relevance
        return found

    @property
    def splits(self) -> list[str]:
        """Names of the loaded splits, in the order they were read."""
        return list(self._judgements)

    @cached_property
    def _passages(self) -> list[str]:
        titles, texts = self.documents["title"].to_pylist(), self.documents["text"].to_pylist()
        return [_passage(title, text) for title, text in zip(titles, texts, strict=True)]

    @cached_property
    def _query_texts(self) -> list[str]:
        texts: list[str] = self.queries["text"].to_pylist()
        return texts

    def passages(self) -> list[str]:
        """What models read of each document, in row order: "title text", or what there is of the two."""
        return list(self._passages)

    def passage(self, doc_id: str) -> str:
        """What models read of one document.

        Raises:
            DataError: there is no such document.
        """
        return self._passages[self._row(self.document_row, doc_id, "document")]

    def query_text(self, query_id: str) -> str:
        """The text of one query.

        Raises:
            DataError: there is no such query.
        """
        return self._query_texts[self._row(self.query_row, query_id, "query")]

    def judged(self, split: str) -> dict[str, dict[str, int]]:
        """query_id -> doc_id -> relevance (0 and below: judged not relevant). A copy, free to change.

        Raises:
            DataError: the split was not loaded.
        """
        return {query: dict(documents) for query, documents in self._split(split).items()}

    def judged_rows(self, split: str) -> dict[str, dict[int, int]]:
        """As `judged`, with document rows instead of ids: the form that candidate mining takes."""
        row = self.document_row
        return {query: {row[d]: r for d, r in found.items()} for query, found in self._split(split).items()}

    def labelled_queries(self, split: str) -> list[str]:
        """Queries with at least one relevance above 0 in the split, in the order of the queries table."""
        positive = {query for query, found in self._split(split).items() if max(found.values()) > 0}
        return [query for query in self.query_row if query in positive]

    def unlabelled_queries(self, *splits: str) -> list[str]:
        """Queries without any judgement, not even a 0, in any of the named splits, in table order."""
        named: set[str] = set().union(*(self._split(split) for split in splits))
        return [query for query in self.query_row if query not in named]

    def _split(self, split: str) -> dict[str, dict[str, int]]:
        if split not in self._judgements:
            loaded = ", ".join(self._judgements) or "none"
            raise DataError(f"split {split!r} of data set {self.name!r} is not loaded; loaded: {loaded}")
        return self._judgements[split]

    def _row(self, rows: dict[str, int], key: str, kind: str) -> int:
        if key not in rows:
            raise DataError(f"data set {self.name!r} has no {kind} {key!r}")
        return rows[key]


def load_dataset(spec: DatasetSpec, folder: Path) -> Dataset:
    """Read the data set of a job.

    Args:
        spec: names the format and the splits.
        folder: where `spec.path` resolved to; for triples it may be a file.

    Raises:
        DataError: nothing is there, the layout is broken, or a named split is missing.
    """
    if not folder.exists():
        raise DataError(
            f"dataset.path: there is no folder {spec.path!r}; "
            "give a folder in BEIR layout, or a Parquet file of triples"
        )
    splits = [split for split in (spec.train_split, spec.dev_split, spec.test_split) if split]
    layout = _layout(folder) if spec.format == "auto" else spec.format
    if layout == "beir" and not folder.is_dir():
        raise DataError(f"dataset.path: {spec.path!r} is a file; a BEIR data set is a folder")
    tables = read_beir(folder, splits) if layout == "beir" else read_triples(folder, splits)
    name = folder.name if folder.is_dir() else folder.stem
    dataset = Dataset(name=name, documents=tables.documents, queries=tables.queries, qrels=tables.qrels)
    _check_labels(dataset, splits)
    return dataset


def _layout(folder: Path) -> str:
    if folder.is_file():
        return "triples"
    return "triples" if triples_files(folder) and not looks_like_beir(folder) else "beir"


def _check_labels(dataset: Dataset, splits: Iterable[str]) -> None:
    for split in splits:
        if not dataset.labelled_queries(split):
            raise DataError(f"qrels: split {split!r} has no judgement above 0, so no query with a positive")


def _passage(title: str, text: str) -> str:
    return f"{title} {text}" if title and text else title or text
