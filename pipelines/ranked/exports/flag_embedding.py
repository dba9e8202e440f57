"""FlagEmbedding: JSON lines with `pos`, `neg` and the teacher's scores beside them.

Enters: chosen lists. Leaves: one row per list. Its loader (`--knowledge_distillation True`) draws one positive and
`train_group_size - 1` negatives per step and takes the scores by the same numbers, so scores and texts stand in the
same order. Ids ride along in `pos_id` and `neg_id`, which it ignores.
"""

from collections.abc import Iterator

from pipelines.ranked.exports.choice import ChosenList, ExportOptions, Texts
from pipelines.ranked.exports.format import NO_NEGATIVE, NO_POSITIVE, Format, Row, TableSpec

__all__ = ["FLAG_EMBEDDING"]


def _tables(_: ExportOptions) -> tuple[TableSpec, ...]:
    return (TableSpec("train", "jsonl"),)


def _rows(chosen: ChosenList, texts: Texts, _: ExportOptions) -> Iterator[tuple[str, Row]]:
    positives, negatives = chosen.positives, chosen.negatives
    yield (
        "train",
        {
            "query": texts.query_text(chosen.query_id),
            "pos": [texts.passage(each.doc_id) for each in positives],
            "neg": [texts.passage(each.doc_id) for each in negatives],
            "pos_scores": [each.logit for each in positives],
            "neg_scores": [each.logit for each in negatives],
            "pos_id": [each.doc_id for each in positives],
            "neg_id": [each.doc_id for each in negatives],
        },
    )


def _lacks(chosen: ChosenList, _: ExportOptions) -> str | None:
    if not any(chosen.positive):
        return NO_POSITIVE
    return NO_NEGATIVE if all(chosen.positive) else None


FLAG_EMBEDDING = Format(
    name="flag-embedding",
    summary="FlagEmbedding, embedder and reranker: a JSON line is a query with pos, neg, pos_scores and neg_scores",
    usage="torchrun -m FlagEmbedding.finetune.embedder.encoder_only.base "
    "--train_data {folder}/data/train.jsonl --knowledge_distillation True --kd_loss_type kl_div ...",
    tables=_tables,
    rows=_rows,
    lacks=_lacks,
)
