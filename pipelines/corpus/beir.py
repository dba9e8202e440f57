"""A BEIR folder becomes tables.

Enters: a folder with `corpus` and `queries` (.jsonl, .jsonl.gz or .parquet; fields `_id`, `title`, `text`)
and `qrels/<split>` (.tsv with the header query-id, corpus-id, score; or .parquet with these columns).
Leaves: `CorpusTables` with the asked splits only. Other splits of the folder are not even opened, so that
hidden labels stay hidden. Layout: https://github.com/beir-cellar/beir/wiki/Load-your-custom-dataset
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from pipelines.corpus.rows import PlacedRow, parquet_rows, rows_of, tsv_rows
from pipelines.corpus.schema import CorpusTables
from pipelines.corpus.validation import QrelsTable, TextTable, check_splits_apart, string_value
from pipelines.errors import DataError

__all__ = ["looks_like_beir", "read_beir", "splits_in"]

_TEXT_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
_QRELS_SUFFIXES = (".tsv", ".parquet")
_QRELS_COLUMNS = ("query-id", "corpus-id", "score")


def looks_like_beir(folder: Path) -> bool:
    """Whether the folder has a file named like a BEIR corpus, query set or qrels."""
    return (folder / "qrels").is_dir() or any(
        (folder / f"{stem}{suffix}").is_file() for stem in ("corpus", "queries") for suffix in _TEXT_SUFFIXES
    )


def splits_in(folder: Path) -> list[str]:
    """Names of the splits that have a qrels file, sorted."""
    files = (folder / "qrels").glob("*")
    return sorted({file.stem for file in files if file.suffix in _QRELS_SUFFIXES})


def read_beir(folder: Path, splits: Sequence[str]) -> CorpusTables:
    """Read and check one folder.

    Args:
        folder: the BEIR folder.
        splits: names of the qrels to read; each must exist.

    Raises:
        DataError: a file or split is missing, or a row breaks the layout (file, line and id are named).
    """
    corpus_file, queries_file = (_one_file(folder, stem, _TEXT_SUFFIXES) for stem in ("corpus", "queries"))
    qrels_files = [_qrels_file(folder, split) for split in splits]
    documents = TextTable(of_documents=True)
    document_table = _read_texts(corpus_file, documents, of_documents=True)
    queries = TextTable(of_documents=False)
    query_table = _read_texts(queries_file, queries, of_documents=False)
    qrels = QrelsTable(documents, queries)
    for split, file in zip(splits, qrels_files, strict=True):
        _read_qrels(file, split, qrels)
    qrels_table = qrels.table()
    check_splits_apart(qrels_table)
    return CorpusTables(document_table, query_table, qrels_table)


def _read_texts(file: Path, collected: TextTable, *, of_documents: bool) -> pa.Table:
    for place, row in rows_of(file, file.name):
        key = string_value(row, "_id", place)
        # BEIR allows a document that is all title; a query has nothing but its text.
        title = string_value(row, "title", place, default="") if of_documents else ""
        text = string_value(row, "text", place, default="")
        collected.add(place, key, title=title, text=text)
    return collected.table(file.name)


def _read_qrels(file: Path, split: str, qrels: QrelsTable) -> None:
    shown = f"qrels/{file.name}"
    num_rows = 0
    for place, row in _qrels_rows(file, shown):
        query_id = string_value(row, "query-id", place)
        doc_id = string_value(row, "corpus-id", place)
        qrels.add(place, split, query_id, doc_id, row.get("score"))
        num_rows += 1
    if not num_rows:
        raise DataError(f"{shown}: holds no judgement")


def _qrels_rows(file: Path, shown: str) -> Iterator[PlacedRow]:
    if file.suffix == ".tsv":
        return tsv_rows(file, shown, _QRELS_COLUMNS)
    return parquet_rows(file, shown, _QRELS_COLUMNS)


def _qrels_file(folder: Path, split: str) -> Path:
    known = splits_in(folder)
    if split not in known:
        have = ", ".join(known) if known else "none"
        raise DataError(f"qrels: there is no split {split!r} (qrels/{split}.tsv); splits that exist: {have}")
    return _one_file(folder / "qrels", split, _QRELS_SUFFIXES)


def _one_file(folder: Path, stem: str, suffixes: tuple[str, ...]) -> Path:
    found = [folder / f"{stem}{suffix}" for suffix in suffixes if (folder / f"{stem}{suffix}").is_file()]
    names = ", ".join(f"{stem}{suffix}" for suffix in suffixes)
    if not found:
        raise DataError(f"dataset.path: {folder.name!r} is not a BEIR folder: it has none of {names}")
    if len(found) > 1:
        raise DataError(f"{found[0].name} and {found[1].name} are both in {folder.name!r}; keep one")
    return found[0]
