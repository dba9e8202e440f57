"""One loop, three learners: the student, the ranker that becomes the teacher, and the label-only control."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from learners_for_tests import CPU, first_batch, fresh_student
from lists_for_tests import candidates_of
from safetensors.torch import load_file
from tiny import RecordingJournal, save_encoder, tiny_spec

from pipelines.candidates.schema import CANDIDATES_SCHEMA
from pipelines.corpus.dataset import Dataset
from pipelines.errors import DataError, ModelError
from pipelines.objectives.cprd import cprd_loss
from pipelines.objectives.info_nce import info_nce_loss
from pipelines.objectives.list_kl import list_kl_loss
from pipelines.objectives.margin_mse import margin_mse_loss
from pipelines.ranked.tail import StreamPosition
from pipelines.rounds import ranker_round
from pipelines.spec import DistillationSpec
from pipelines.student.model import DualEncoder
from pipelines.teacher.contract import contract_of
from pipelines.teacher.engine import load_engine
from pipelines.training import label_only, loop, ranker_fitting, teacher
from pipelines.training.encoding import EncodingSettings
from pipelines.training.label_only import train_label_only
from pipelines.training.labelled import labelled_rows
from pipelines.training.loop import StepReport
from pipelines.training.ranker import new_ranker, ranker_losses, save_ranker
from pipelines.training.settings import loop_settings
from pipelines.training.student_step import StudentStep
from pipelines.training.teacher import learn_teacher, teacher_key


def spec_with(**train: Any) -> DistillationSpec:
    settings = {"max_steps": 6, "lists_per_step": 3, "negatives_per_list": 3, "learning_rate": 3e-3, "dtype": "fp32"}
    return tiny_spec(teacher={"model": {"id": "encoder"}, "max_length": 32, "dtype": "fp32", "train": settings | train})


def weights(model: torch.nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


def test_one_loop_trains_them_all() -> None:
    # A second loop would be a second place to forget clipping, checkpoints or the NaN check.
    assert teacher.fit_ranker is ranker_round.fit_ranker is ranker_fitting.fit_ranker
    assert ranker_fitting.train is loop.train
    assert label_only.train is loop.train


def test_labelled_rows_go_on_for_ever_and_from_anywhere(labelled: pa.Table) -> None:
    def take(rows: Iterator[Any], count: int) -> list[Any]:
        return [(row.query_id, position) for row, position in (next(rows) for _ in range(count))]

    whole = take(labelled_rows(labelled, start=StreamPosition(), seed=4), 30)
    for done in (1, 11, 12, 13, 24):
        assert take(labelled_rows(labelled, start=whole[done - 1][1], seed=4), 30 - done) == whole[done:]
    epochs = [[query for query, _ in whole[i : i + 12]] for i in (0, 12)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(labelled["query_id"].to_pylist())
    assert epochs[0] != epochs[1]


def test_labels_that_nothing_can_be_learned_from_are_an_error(dataset: Dataset) -> None:
    # A positive with nothing to put below it never makes a step: without this check the loop would turn for ever.
    alone = [{"doc_id": "d1", "student_score": None, "bm25_rank": 0, "dense_rank": None, "relevance": 1}]
    table = pa.Table.from_pylist([{"query_id": "train0", "candidates": alone}], schema=CANDIDATES_SCHEMA)
    for hopeless in (table, candidates_of({"train0": ["d1", "d2"]})):
        with pytest.raises(DataError, match="none of 1 labelled queries"):
            next(labelled_rows(hopeless, start=StreamPosition(), seed=0))


def test_the_ranker_loss_is_cross_entropy_over_the_engines_logits(
    dataset: Dataset, labelled: pa.Table, encoder_folder: Path, tmp_path: Path
) -> None:
    # What the ranker is trained on is what the teacher will score with: same pairs, same cut, same logits.
    torch.manual_seed(0)
    model, encoder = new_ranker(encoder_folder, max_length=16, truncation="passage_end", dropout=0.0, device=CPU)
    model.eval()
    batch = first_batch(dataset, labelled)
    loss = ranker_losses(model, encoder, batch, dtype="fp32")["loss"]
    save_ranker(model, encoder.tokenizer, tmp_path / "ranker")
    contract = contract_of(tmp_path / "ranker", model_id="r", revision=None, max_length=16, dtype="fp32")
    engine = load_engine(tmp_path / "ranker", contract, device=torch.device("cpu"), tokens_per_batch=256)
    expected = []
    for query, columns, mask, positive in zip(
        batch.query_texts, batch.columns, batch.mask, batch.positive, strict=True
    ):
        passages = [batch.document_texts[i] for i in columns[mask].tolist()]
        logits = torch.from_numpy(engine.score([query] * len(passages), passages)).double()
        expected.append(torch.logsumexp(logits, 0) - logits[positive])
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-5)


def test_a_ranker_batch_without_a_positive_is_refused(
    dataset: Dataset, labelled: pa.Table, encoder_folder: Path
) -> None:
    model, encoder = new_ranker(encoder_folder, max_length=32, truncation="passage_end", dropout=0.0, device=CPU)
    batch = first_batch(dataset, labelled)
    bad = dataclasses.replace(batch, positive=torch.full_like(batch.positive, -1))
    with pytest.raises(ValueError, match="without a positive"):
        ranker_losses(model, encoder, bad, dtype="fp32")


def test_a_max_length_without_room_stops_the_ranker_too(
    dataset: Dataset, labelled: pa.Table, encoder_folder: Path
) -> None:
    model, encoder = new_ranker(encoder_folder, max_length=8, truncation="passage_end", dropout=0.0, device=CPU)
    with pytest.raises(DataError, match=r"teacher\.max_length 8 leaves 5 tokens"):
        ranker_losses(model, encoder, first_batch(dataset, labelled), dtype="fp32")


def test_a_ranker_starts_with_the_encoders_weights_and_the_dropout_asked_for(encoder_folder: Path) -> None:
    model, _ = new_ranker(encoder_folder, max_length=32, truncation="passage_end", dropout=0.25, device=CPU)
    assert model.config.num_labels == 1
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}
    stored = load_file(encoder_folder / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    assert torch.equal(model.state_dict()[f"bert.{name}"], stored[name])


def test_a_ranker_is_not_started_from_random_layers_or_too_few_positions(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "encoder", max_position_embeddings=30)
    with pytest.raises(ModelError, match=r"teacher\.max_length is 31"):
        new_ranker(folder, max_length=31, truncation="passage_end", dropout=0.0, device=CPU)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"bert\.encoder\.layer\.2\."):
        new_ranker(folder, max_length=30, truncation="passage_end", dropout=0.0, device=CPU)


def learn(
    base: Path, dataset: Dataset, labelled: pa.Table, folder: Path, **train: Any
) -> tuple[Path, RecordingJournal]:
    journal = RecordingJournal()
    spec = spec_with(**train)
    made = learn_teacher(base, dataset, labelled, spec.teacher, seed=spec.seed, folder=folder, journal=journal)
    return made, journal


def test_a_ranker_learns_a_tiny_set_by_heart(
    encoder_folder: Path, dataset: Dataset, labelled: pa.Table, tmp_path: Path
) -> None:
    # If it cannot, gradients, labels or columns are wrong somewhere, whatever the loss curve looks like.
    made, journal = learn(
        encoder_folder, dataset, labelled, tmp_path, max_steps=80, lists_per_step=6, negatives_per_list=5
    )
    assert float(journal.numbers["teacher_loss"]) < 0.05
    contract = contract_of(made, model_id="t", revision=None, max_length=32, dtype="fp32")
    engine = load_engine(made, contract, device=torch.device("cpu"), tokens_per_batch=512)
    first = 0
    for query_id, items in zip(labelled["query_id"].to_pylist(), labelled["candidates"].to_pylist(), strict=True):
        passages = [dataset.passage(item["doc_id"]) for item in items]
        logits = engine.score([dataset.query_text(query_id)] * len(items), passages)
        first += (items[int(logits.argmax())]["relevance"] or 0) > 0
    assert first >= 11, "of 12 labelled queries"


def test_a_learned_teacher_is_found_again(
    encoder_folder: Path, dataset: Dataset, labelled: pa.Table, tmp_path: Path
) -> None:
    made, journal = learn(encoder_folder, dataset, labelled, tmp_path)
    assert journal.numbers["teacher_step"] == 6
    assert [name for name, _ in journal.events] == ["teacher.training.started", "teacher.training.finished"]
    before = (made / "model.safetensors").stat().st_mtime_ns
    again, second = learn(encoder_folder, dataset, labelled, tmp_path)
    assert again == made
    assert second.numbers == {}
    assert [name for name, _ in second.events] == ["teacher.reused"]
    assert (made / "model.safetensors").stat().st_mtime_ns == before


def test_a_teacher_killed_while_learning_goes_on_and_is_the_same(
    encoder_folder: Path, dataset: Dataset, labelled: pa.Table, tmp_path: Path
) -> None:
    class Killed(Exception):  # noqa: N818
        pass

    def kill(numbers: dict[str, Any]) -> None:
        if numbers["teacher_step"] == 53:
            raise Killed

    settings = {"max_steps": 56, "dropout": 0.1, "lists_per_step": 2, "negatives_per_list": 2}
    whole, _ = learn(encoder_folder, dataset, labelled, tmp_path / "whole", **settings)
    journal = RecordingJournal()
    journal.on_progress = kill
    spec = spec_with(**settings)
    arguments = (encoder_folder, dataset, labelled, spec.teacher)
    with pytest.raises(Killed):
        learn_teacher(*arguments, seed=spec.seed, folder=tmp_path / "killed", journal=journal)
    steps: list[Any] = []
    second = RecordingJournal()
    second.on_progress = lambda numbers: steps.append(numbers["teacher_step"])
    made = learn_teacher(*arguments, seed=spec.seed, folder=tmp_path / "killed", journal=second)
    assert steps == list(range(51, 57)), "from the checkpoint of step 50 on"
    assert (made / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_the_key_names_everything_that_decides_the_teacher(
    encoder_folder: Path, dataset: Dataset, labelled: pa.Table, tmp_path: Path
) -> None:
    spec = spec_with()

    def key(base: Path = encoder_folder, table: pa.Table = labelled, seed: int = 3, **changes: Any) -> str:
        chosen = spec.teacher.model_copy(update=changes)
        return teacher_key(base, dataset, table, chosen, seed=seed)

    rows = labelled.to_pylist()
    rows[0]["candidates"][0]["relevance"] = 0
    relabelled = pa.Table.from_pylist(rows, schema=labelled.schema)
    keys = [
        key(),
        key(table=relabelled),
        key(table=labelled.slice(0, 11)),
        key(base=save_encoder(tmp_path / "other", seed=9)),
        key(seed=4),
        key(max_length=33),
        key(train=spec_with(max_steps=7).teacher.train),
    ]
    assert len(set(keys)) == len(keys)
    # Where it is served, and how many, changes no weight.
    assert key(replicas=5, cpus_per_replica=2.0, tokens_per_batch=64) == key()


def test_the_student_loss_is_the_weighted_sum_of_its_terms(
    dataset: Dataset, labelled: pa.Table, encoder_folder: Path
) -> None:
    spec = tiny_spec(
        training={
            "candidates_per_query": 4,
            "objective": [
                {"name": "list_kl", "weight": 2.0},
                {"name": "info_nce", "weight": 0.5},
                {"name": "cprd", "weight": 0.0},
            ],
        }
    )
    batch = first_batch(dataset, labelled)
    batch = dataclasses.replace(batch, teacher_logits=torch.randn(batch.mask.shape, generator=torch.manual_seed(0)))
    losses = StudentStep(fresh_student(encoder_folder), spec.training.objective)(batch)
    assert set(losses) == {"loss", "list_kl", "info_nce", "cprd"}
    total = 2 * losses["list_kl"] + 0.5 * losses["info_nce"]
    assert losses["loss"].item() == pytest.approx(total.item(), rel=1e-6)
    assert losses["cprd"].item() > 0, "weight 0 is computed and shown"


def test_each_term_gets_the_positives_it_is_about(dataset: Dataset, labelled: pa.Table, encoder_folder: Path) -> None:
    # "positive" is a column of the list for margin_mse, a document of the batch for info_nce; cprd leaves the judged
    # ones out. Mixed up, every one of them would still train, on the wrong documents.
    batch = first_batch(dataset, labelled)
    batch = dataclasses.replace(batch, teacher_logits=torch.randn(batch.mask.shape, generator=torch.manual_seed(0)))
    student = fresh_student(encoder_folder)
    queries, documents = student.embed(batch.query_texts, "query"), student.embed(batch.document_texts, "document")
    scores = torch.stack([queries[q] @ documents[columns].T for q, columns in enumerate(batch.columns)])
    lists = (scores, batch.teacher_logits, batch.mask)
    rows = torch.tensor([int(batch.columns[q, p]) for q, p in enumerate(batch.positive)])
    expected = {
        "cprd": cprd_loss(*lists, positives=batch.judged_positive, temperature=0.05, reduction="mean_over_terms"),
        "list_kl": list_kl_loss(*lists, temperature=0.05),
        "margin_mse": margin_mse_loss(*lists, positive=batch.positive, scale=10.0),
        "info_nce": info_nce_loss(queries, documents, rows, relevant=batch.relevant, temperature=0.05),
    }
    terms = [{"name": name} | ({"scale": 10.0} if name == "margin_mse" else {}) for name in expected]
    spec = tiny_spec(training={"candidates_per_query": 4, "objective": terms})
    losses = StudentStep(student, spec.training.objective)(batch)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-4), name


@pytest.mark.parametrize(
    "term", [{"name": "info_nce"}, {"name": "cprd"}, {"name": "list_kl"}, {"name": "margin_mse", "scale": 10.0}]
)
def test_a_batch_without_any_positive_still_makes_a_step(
    dataset: Dataset, labelled: pa.Table, encoder_folder: Path, term: dict[str, Any]
) -> None:
    # Unlabelled queries below the confidence have no positive; a batch of only those must not end the training.
    spec = tiny_spec(training={"candidates_per_query": 4, "objective": [term]})
    batch = first_batch(dataset, labelled)
    bare = dataclasses.replace(
        batch,
        positive=torch.full_like(batch.positive, -1),
        judged_positive=torch.zeros_like(batch.judged_positive),
        relevant=torch.zeros_like(batch.relevant),
    )
    student = fresh_student(encoder_folder)
    loss = StudentStep(student, spec.training.objective)(bare)["loss"]
    loss.backward()
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(g).all()) for g in gradients)
    if term["name"] in {"info_nce", "margin_mse"}:
        assert loss.item() == 0
        assert not any(bool(g.any()) for g in gradients)


def test_bf16_training_has_fp32_losses_close_to_the_exact_ones(
    dataset: Dataset, labelled: pa.Table, encoder_folder: Path
) -> None:
    batch, student = first_batch(dataset, labelled), fresh_student(encoder_folder)
    objective = tiny_spec().training.objective
    half = StudentStep(student, objective, encoding=EncodingSettings(dtype="bf16"))(batch)
    exact = StudentStep(student, objective)(batch)
    assert half["loss"].dtype == torch.float32
    assert half["loss"].item() == pytest.approx(exact["loss"].item(), rel=0.1)


def control(
    folder: Path, dataset: Dataset, labelled: pa.Table, **training: Any
) -> tuple[DualEncoder, list[StepReport]]:
    spec = tiny_spec(training={"queries_per_step": 4, "candidates_per_query": 4, "learning_rate": 3e-3} | training)
    student = fresh_student(folder, spec)
    reports: list[StepReport] = []
    train_label_only(student, dataset, labelled, spec, loop_settings(spec, 32), on_step=reports.append)
    return student, reports


def test_the_control_learns_from_labels_alone(encoder_folder: Path, dataset: Dataset, labelled: pa.Table) -> None:
    # Candidates carry no teacher's score, and no term that would read one is computed: whatever the job's objective
    # says about the teacher, the control is the same student to the last bit.
    with_kl, reports = control(encoder_folder, dataset, labelled)
    names = [{"name": "cprd", "weight": 3.0}, {"name": "info_nce"}]
    with_cprd, _ = control(encoder_folder, dataset, labelled, objective=names)
    without, _ = control(encoder_folder, dataset, labelled, objective=[{"name": "list_kl"}])
    weightless, _ = control(
        encoder_folder, dataset, labelled, objective=[{"name": "list_kl"}, {"name": "info_nce", "weight": 0}]
    )
    masked, _ = control(encoder_folder, dataset, labelled, objective=[{"name": "info_nce", "teacher_margin": 0.0}])
    assert weights(with_kl) == weights(with_cprd) == weights(without) == weights(weightless) == weights(masked)
    assert {name for report in reports for name in report.losses} == {"loss", "info_nce"}
    assert weights(with_kl) != weights(fresh_student(encoder_folder))
    losses = [report.losses["loss"] for report in reports]
    assert len(losses) == 8, "as many steps as the job's 32 queries make"
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_the_control_uses_the_jobs_own_temperature(encoder_folder: Path, dataset: Dataset, labelled: pa.Table) -> None:
    sharp, _ = control(encoder_folder, dataset, labelled, objective=[{"name": "info_nce", "temperature": 0.02}])
    default, _ = control(encoder_folder, dataset, labelled)
    assert weights(sharp) != weights(default)


@pytest.mark.parametrize("family", ["DistilBert", "DebertaV2", "ModernBert", "Roberta", "Electra"])
def test_a_ranker_starts_from_any_family_of_encoders(family: str, encoder_folder: Path, tmp_path: Path) -> None:
    """Each names its new head in its own way; none of those weights is in an encoder's checkpoint."""
    import transformers

    shutil.copytree(encoder_folder, tmp_path / "encoder")
    (tmp_path / "encoder" / "model.safetensors").unlink()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if family == "DistilBert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    config = getattr(transformers, f"{family}Config")(vocab_size=200, pad_token_id=0, **sizes)
    getattr(transformers, f"{family}Model")(config).save_pretrained(tmp_path / "encoder")
    model, _ = new_ranker(tmp_path / "encoder", max_length=32, truncation="passage_end", dropout=0.0, device=CPU)
    assert model.config.num_labels == 1
