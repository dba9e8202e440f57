"""sentence-transformers: `n-tuple` and `labeled-list`, the shapes that its `mine_hard_negatives` gives with scores.

Enters: chosen lists. Leaves: Parquet rows. Column order is part of the format: the trainer hands a loss the columns by
position, query first, and takes `scores` as the labels. As in the peer, each positive makes a row of its own with the
list's hardest negatives, and other positives of the query are not in that row.
"""

from collections.abc import Iterator

import pyarrow as pa

from pipelines.ranked.exports.choice import ChosenList, ExportOptions, Texts
from pipelines.ranked.exports.format import NO_NEGATIVE, NO_POSITIVE, Format, Row, TableSpec
from pipelines.spec import SpecError

__all__ = ["LABELED_LIST", "N_TUPLE"]

_SCORES = ("scores", pa.list_(pa.float32()))


def _n_tuple_tables(options: ExportOptions) -> tuple[TableSpec, ...]:
    columns = [(name, pa.string()) for name in ("query", "positive", *_negative_columns(options))]
    return (TableSpec("train", "parquet", pa.schema([*columns, _SCORES])),)


def _n_tuple_rows(chosen: ChosenList, texts: Texts, options: ExportOptions) -> Iterator[tuple[str, Row]]:
    negatives = chosen.negatives
    columns = dict(zip(_negative_columns(options), (texts.passage(each.doc_id) for each in negatives), strict=True))
    for positive in chosen.positives:
        scores = [positive.logit, *(each.logit for each in negatives)]
        yield (
            "train",
            {
                "query": texts.query_text(chosen.query_id),
                "positive": texts.passage(positive.doc_id),
                **columns,
                "scores": scores,
            },
        )


def _n_tuple_lacks(chosen: ChosenList, options: ExportOptions) -> str | None:
    wanted = len(_negative_columns(options))
    if not any(chosen.positive):
        return NO_POSITIVE
    # As the peer does: a row of N columns has N negatives. A repeated or random one would have a wrong score.
    return f"fewer than {wanted} negatives" if len(chosen.negatives) < wanted else None


def _negative_columns(options: ExportOptions) -> list[str]:
    if options.num_negatives is None:
        raise SpecError([("num_negatives", "n-tuple has a fixed number of columns: say how many negatives")])
    return [f"negative_{number}" for number in range(1, options.num_negatives + 1)]


N_TUPLE = Format(
    name="n-tuple",
    summary="sentence-transformers, MarginMSELoss and DistillKLDivLoss: a row is query, positive, N negatives, scores",
    usage="""from datasets import load_dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, losses

train = load_dataset("parquet", data_files="{folder}/data/train.parquet", split="train")
model = SentenceTransformer("...")
SentenceTransformerTrainer(model=model, train_dataset=train, loss=losses.MarginMSELoss(model)).train()""",
    tables=_n_tuple_tables,
    rows=_n_tuple_rows,
    lacks=_n_tuple_lacks,
)


def _labeled_list_tables(_: ExportOptions) -> tuple[TableSpec, ...]:
    schema = pa.schema([("query", pa.string()), ("docs", pa.list_(pa.string())), _SCORES])
    return (TableSpec("train", "parquet", schema),)


def _labeled_list_rows(chosen: ChosenList, texts: Texts, _: ExportOptions) -> Iterator[tuple[str, Row]]:
    negatives = chosen.negatives
    for positive in chosen.positives:
        listed = [positive, *negatives]
        yield (
            "train",
            {
                "query": texts.query_text(chosen.query_id),
                "docs": [texts.passage(each.doc_id) for each in listed],
                "scores": [each.logit for each in listed],
            },
        )


def _labeled_list_lacks(chosen: ChosenList, _: ExportOptions) -> str | None:
    if not any(chosen.positive):
        return NO_POSITIVE
    return NO_NEGATIVE if all(chosen.positive) else None


LABELED_LIST = Format(
    name="labeled-list",
    summary="sentence-transformers, listwise losses of its CrossEncoder: a row is query, docs (positive first), scores",
    usage="""from datasets import load_dataset
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, losses

train = load_dataset("parquet", data_files="{folder}/data/train.parquet", split="train")
model = CrossEncoder("...", num_labels=1)
CrossEncoderTrainer(model=model, train_dataset=train, loss=losses.ListNetLoss(model)).train()""",
    tables=_labeled_list_tables,
    rows=_labeled_list_rows,
    lacks=_labeled_list_lacks,
)
