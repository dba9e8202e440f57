"""The exports in the peers' own hands: real loaders, real collators, real losses, a real training step.

Labels that arrive in a loss must be the logits of the table, bit by bit. What needs the packages `datasets` and
`accelerate` (sentence-transformers' extra `train`) is skipped where they are missing; its collator and losses are not.
"""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from exports_for_tests import Exporter, logit, table_below
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

from pipelines.corpus.dataset import Dataset

N_TUPLE_ROWS = [("train0", "d1", "d3", "d2"), ("train0", "d0", "d3", "d2"), ("pool13", "d10", "d11", "d12")]
N_TUPLE_LABELS = torch.tensor([[logit(query, doc) for doc in docs] for query, *docs in N_TUPLE_ROWS])


@pytest.fixture
def export(dataset: Dataset, tmp_path: Path) -> Exporter:
    return Exporter(table_below(tmp_path / "root", dataset), dataset, tmp_path)


@pytest.fixture
def student(encoder_folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(encoder_folder), device="cpu")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The `datasets` library, with its cache in the test's folder."""
    library = pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    monkeypatch.setattr(library.config, "HF_DATASETS_OFFLINE", True, raising=False)
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return library


def recorded(kind: type[torch.nn.Module]) -> tuple[type[torch.nn.Module], list[Any]]:
    """A loss class that keeps the labels it is given."""
    seen: list[Any] = []

    class Recorded(kind):  # type: ignore[misc,valid-type]
        def forward(self, inputs: Any, labels: Any, *args: Any, **kwargs: Any) -> Any:
            seen.extend(list(labels))
            return super().forward(inputs, labels, *args, **kwargs)

    return Recorded, seen


def sorted_rows(labels: Any) -> list[list[float]]:
    """Rows of labels as lists, in an order that shuffling does not change."""
    return sorted(torch.as_tensor(row).tolist() for row in labels)


@pytest.mark.parametrize("kind", [losses.MarginMSELoss, losses.DistillKLDivLoss])
def test_collator_and_loss_take_n_tuples(kind: Any, export: Exporter, student: SentenceTransformer) -> None:
    rows = pq.read_table(export("n-tuple", negatives=2).data("train.parquet")).to_pylist()
    batch = SentenceTransformerDataCollator(preprocess_fn=student.preprocess)(rows)
    assert torch.equal(batch["label"], N_TUPLE_LABELS)
    texts = [column for column in rows[0] if column != "scores"]
    features = [
        {key.removeprefix(f"{column}_"): value for key, value in batch.items() if key.startswith(f"{column}_")}
        for column in texts
    ]
    loss = kind(student)(features, batch["label"])
    loss.backward()
    assert torch.isfinite(loss)
    assert loss > 0
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in student.parameters())


@pytest.mark.parametrize("kind", [losses.MarginMSELoss, losses.DistillKLDivLoss])
def test_its_trainer_trains_on_n_tuples(
    kind: Any, hub: Any, export: Exporter, student: SentenceTransformer, tmp_path: Path
) -> None:
    file = export("n-tuple", negatives=2).data("train.parquet")
    train = hub.load_dataset("parquet", data_files=str(file), split="train")
    loss, seen = recorded(kind)
    assert _trained(student, train, loss(student), tmp_path)
    assert sorted_rows(seen) == sorted_rows(N_TUPLE_LABELS)


def test_labeled_lists_expand_to_columns_for_distill_kl(
    hub: Any, export: Exporter, student: SentenceTransformer, tmp_path: Path
) -> None:
    """Its dual-encoder losses take one column per document; lists of one length become that in a line."""
    file = export("labeled-list", negatives=3).data("train.parquet")
    lists = hub.load_dataset("parquet", data_files=str(file), split="train").filter(lambda row: len(row["docs"]) == 4)
    train = lists.map(
        lambda row: {f"doc_{number}": doc for number, doc in enumerate(row["docs"])}, remove_columns=["docs"]
    )
    loss, seen = recorded(losses.DistillKLDivLoss)
    assert _trained(student, train, loss(student), tmp_path)
    rows = [
        ("train0", "d1", "d3", "d2", "d4"),
        ("train0", "d0", "d3", "d2", "d4"),
        ("pool13", "d10", "d11", "d12", "d13"),
    ]
    assert sorted_rows(seen) == sorted_rows(
        torch.tensor([[logit(query, doc) for doc in docs] for query, *docs in rows])
    )


def test_its_cross_encoder_trains_on_labeled_lists(
    hub: Any, export: Exporter, teacher_folder: Path, tmp_path: Path
) -> None:
    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import ListNetLoss

    file = export("labeled-list").data("train.parquet")
    train = hub.load_dataset("parquet", data_files=str(file), split="train")
    model = CrossEncoder(str(teacher_folder), device="cpu")
    loss, seen = recorded(ListNetLoss)
    arguments = CrossEncoderTrainingArguments(str(tmp_path / "out"), **_ONE_STEP)
    CrossEncoderTrainer(model=model, args=arguments, train_dataset=train, loss=loss(model)).train()
    expected = pq.read_table(file)["scores"].to_pylist()
    assert sorted_rows(seen) == sorted(expected)


def test_resolve_ids_joins_the_pylate_tables(
    hub: Any, export: Exporter, student: SentenceTransformer, tmp_path: Path
) -> None:
    """The folder itself is what is loaded: the README's header names the tables."""
    from sentence_transformers.util import resolve_ids

    done = export("pylate")
    train, queries, documents = (
        hub.load_dataset(str(done.folder), name, split="train") for name in ("train", "queries", "documents")
    )
    train.set_transform(resolve_ids({"query_id": queries, "document_ids": documents}, max_list_length=2))
    assert list(train[0]) == ["query", "document_1", "document_2", "scores"]
    loss, seen = recorded(losses.DistillKLDivLoss)
    assert _trained(student, train, loss(student), tmp_path, remove_unused_columns=False)
    pairs = [("train0", "d3", "d1"), ("train1", "d5", "d6"), ("pool12", "d7", "d8"), ("pool13", "d10", "d11")]
    assert sorted_rows(seen) == sorted_rows(
        torch.tensor([[logit(query, doc) for doc in docs] for query, *docs in pairs])
    )


def test_columns_are_those_of_its_miner(hub: Any, export: Exporter, student: SentenceTransformer) -> None:
    from sentence_transformers.util import mine_hard_negatives

    texts = [f"{word} care" for word in ("heart", "lung", "liver", "bone")]

    def mined(positive: str, output_format: Any) -> Any:
        pairs = hub.Dataset.from_dict({"query": [f"what is {text}" for text in texts], positive: texts})
        return mine_hard_negatives(
            pairs, student, num_negatives=2, output_format=output_format, output_scores=True, verbose=False
        )

    for name, positive in (("n-tuple", "positive"), ("labeled-list", "docs")):
        theirs = mined(positive, name)
        ours = hub.load_dataset(
            "parquet", data_files=str(export(name, negatives=2).data("train.parquet")), split="train"
        )
        assert ours.column_names == theirs.column_names
        assert [type(value) for value in ours[0].values()] == [type(value) for value in theirs[0].values()]
        assert len(ours[0]["scores"]) == len(theirs[0]["scores"]) == 3


@pytest.mark.parametrize("name", ["flag-embedding", "tevatron", "tevatron-listwise"])
def test_json_lines_load_as_the_peers_load_them(name: str, hub: Any, export: Exporter) -> None:
    done = export(name)
    train = hub.load_dataset("json", data_files=str(done.data("train.jsonl")), split="train")
    assert len(train) == done.report.lists_exported
    assert hub.load_dataset(str(done.folder), split="train")[0] == train[0]
    row = train[0]
    if name == "flag-embedding":
        assert row["pos_scores"] == [logit("train0", doc) for doc in row["pos_id"]]
        assert row["neg_scores"] == [logit("train0", doc) for doc in row["neg_id"]]
    elif name == "tevatron":
        for passage in (*row["positive_passages"], *row["negative_passages"]):
            assert passage["score"] == logit("train0", passage["docid"])
    else:
        assert row["scores"] == [logit("train0", passage["docid"]) for passage in row["passages"]]


_ONE_STEP: dict[str, Any] = {
    "max_steps": 1,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-2,
    "warmup_steps": 0,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
}


def _trained(model: SentenceTransformer, train: Any, loss: torch.nn.Module, folder: Path, **arguments: Any) -> bool:
    """One step of its trainer over all rows; whether any weight moved."""
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    before = [weight.clone() for weight in model.parameters()]
    settings = SentenceTransformerTrainingArguments(str(folder / "out"), **(_ONE_STEP | arguments))
    SentenceTransformerTrainer(model=model, args=settings, train_dataset=train, loss=loss).train()
    return any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
