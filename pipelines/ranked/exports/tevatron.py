"""Tevatron: passages with ids and scores for its dual encoders, and `passages`/`scores` for its listwise distillation.

Enters: chosen lists. Leaves: JSON lines. `DistilTrainDataset` reads a score per passage from `positive_passages` and
`negative_passages` (its newer form by document id has one score per document, not per pair, so it cannot hold ours);
`annotate_with_teacher` defines `passages` and `scores`, a positive first. A passage is all that the teacher read, title
included, in `text`: without a `title` the loader leaves it as it is.
"""

from collections.abc import Iterator

from pipelines.ranked.exports.choice import ChosenList, ExportOptions, Scored, Texts
from pipelines.ranked.exports.format import NO_NEGATIVE, NO_POSITIVE, Format, Row, TableSpec

__all__ = ["TEVATRON", "TEVATRON_LISTWISE"]


def _tables(_: ExportOptions) -> tuple[TableSpec, ...]:
    return (TableSpec("train", "jsonl"),)


def _rows(chosen: ChosenList, texts: Texts, _: ExportOptions) -> Iterator[tuple[str, Row]]:
    def passages(scored: list[Scored]) -> list[Row]:
        return [{"docid": doc_id, "text": texts.passage(doc_id), "score": logit} for doc_id, logit in scored]

    yield (
        "train",
        {
            "query_id": chosen.query_id,
            "query": texts.query_text(chosen.query_id),
            "positive_passages": passages(chosen.positives),
            "negative_passages": passages(chosen.negatives),
        },
    )


def _listwise_rows(chosen: ChosenList, texts: Texts, _: ExportOptions) -> Iterator[tuple[str, Row]]:
    listed = [*chosen.positives, *chosen.negatives]
    yield (
        "train",
        {
            "query_id": chosen.query_id,
            "query": texts.query_text(chosen.query_id),
            "passages": [{"docid": each.doc_id, "text": texts.passage(each.doc_id)} for each in listed],
            "scores": [each.logit for each in listed],
        },
    )


def _lacks(chosen: ChosenList, _: ExportOptions) -> str | None:
    if not any(chosen.positive):
        return NO_POSITIVE
    return NO_NEGATIVE if all(chosen.positive) else None


TEVATRON = Format(
    name="tevatron",
    summary="Tevatron, dual encoders: a JSON line is a query with positive_passages and negative_passages, each scored",
    usage="python -m tevatron.retriever.driver.train_distil "
    "--dataset_name json --dataset_path {folder}/data/train.jsonl ...",
    tables=_tables,
    rows=_rows,
    lacks=_lacks,
)

TEVATRON_LISTWISE = Format(
    name="tevatron-listwise",
    summary="Tevatron, listwise distillation of rerankers: a JSON line is a query with passages and scores",
    usage="""from datasets import load_dataset

train = load_dataset("json", data_files="{folder}/data/train.jsonl", split="train")
train.save_to_disk("distill_cache")  # what its distillation driver loads""",
    tables=_tables,
    rows=_listwise_rows,
    lacks=_lacks,
)
