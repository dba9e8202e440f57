"""What a step hands to its objectives: the right head, every prefix, the previous student, learned parameters.

Why: an objective is proven against official numbers with its own inputs; here is where it gets them. Crossed heads,
a forgotten prefix or a temperature that never moves would still train something.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from learners_for_tests import first_batch, fresh_student
from tiny import tiny_spec

from pipelines.corpus.dataset import Dataset
from pipelines.errors import ModelError
from pipelines.objectives.info_nce import info_nce_loss
from pipelines.objectives.list_kl import list_kl_loss
from pipelines.objectives.nspt import nspt_loss
from pipelines.objectives.registry import OBJECTIVES, TENSORS
from pipelines.ranked.tail import StreamPosition
from pipelines.spec import DistillationSpec
from pipelines.student.matryoshka import configuration_invariance_loss, truncated
from pipelines.student.model import DualEncoder
from pipelines.training.batches import ListBatch
from pipelines.training.checkpoints import Checkpoints
from pipelines.training.fitting import needs_previous_student, require_fitting
from pipelines.training.loop import LoopSettings, train
from pipelines.training.step_tensors import list_scores, step_tensors
from pipelines.training.student_step import StudentStep

SETTINGS = LoopSettings(
    total_steps=6, learning_rate=1e-2, warmup_ratio=0.1, weight_decay=0.0, max_grad_norm=1.0, checkpoint_every_steps=2
)


def spec_of(*terms: dict[str, Any], **student: Any) -> DistillationSpec:
    """A whole checkpoint, so that every objective accepts it."""
    return tiny_spec(
        training={"objective": list(terms), "candidates_per_query": 4}, student={"num_layers": None} | student
    )


@pytest.fixture
def batch(dataset: Dataset, labelled: pa.Table) -> ListBatch:
    plain = first_batch(dataset, labelled)
    logits = torch.randn(plain.mask.shape, generator=torch.manual_seed(0)) * 3
    return dataclasses.replace(plain, teacher_logits=logits.masked_fill(~plain.mask, 0))


def student_of(folder: Path, spec: DistillationSpec) -> DualEncoder:
    student = fresh_student(folder, spec)
    if student.heads:  # as after some steps: the two heads no longer agree
        torch.manual_seed(1)
        for head in (student.heads.contrastive, student.heads.distillation):
            torch.nn.init.normal_(head.weight, std=0.3)
    return student


def test_a_step_offers_the_vocabulary(batch: ListBatch, encoder_folder: Path) -> None:
    student = fresh_student(encoder_folder)
    queries, documents = student.embed(batch.query_texts, "query"), student.embed(batch.document_texts, "document")
    tensors = step_tensors(batch, queries, documents)
    assert set(tensors) == {name for name in TENSORS if not name.startswith("previous_")}
    for query, (columns, mask) in enumerate(zip(batch.columns, batch.mask, strict=True)):
        for place, document in enumerate(columns[mask].tolist()):
            assert bool(tensors["scored"][query, document])
            assert tensors["batch_teacher_scores"][query, document] == batch.teacher_logits[query, place]
            assert tensors["student_scores"][query, place] == tensors["batch_scores"][query, document]
        assert int(tensors["scored"][query].sum()) == int(mask.sum())
        positive = int(batch.positive[query])
        assert tensors["positive_document"][query] == (columns[positive] if positive >= 0 else -1)


def test_labels_teach_the_contrastive_head_and_the_teacher_the_other(batch: ListBatch, encoder_folder: Path) -> None:
    spec = spec_of({"name": "info_nce"}, {"name": "list_kl"}, heads={"serve": "interpolated"})
    student = student_of(encoder_folder, spec)
    losses = StudentStep(student, spec.training.objective)(batch)
    queries = student.embed_views(batch.query_texts, "query")
    documents = student.embed_views(batch.document_texts, "document")
    by_labels = step_tensors(batch, queries.contrastive, documents.contrastive)
    by_teacher = step_tensors(batch, queries.distillation, documents.distillation)
    contrastive = info_nce_loss(
        queries.contrastive,
        documents.contrastive,
        by_labels["positive_document"],
        relevant=by_labels["relevant"],
    )
    distillation = list_kl_loss(by_teacher["student_scores"], by_teacher["teacher_scores"], by_teacher["mask"])
    assert losses["info_nce"].item() == pytest.approx(contrastive.item(), rel=1e-5)
    assert losses["list_kl"].item() == pytest.approx(distillation.item(), rel=1e-5)


def test_with_matryoshka_every_term_is_the_mean_over_the_full_vector_and_its_prefixes(
    batch: ListBatch, encoder_folder: Path
) -> None:
    sizes = (16, 8)
    spec = spec_of({"name": "list_kl"}, matryoshka={"dimensions": sizes, "invariance_weight": 3.0})
    student = fresh_student(encoder_folder, spec)
    losses = StudentStep(student, spec.training.objective)(batch)
    queries, documents = student.embed(batch.query_texts, "query"), student.embed(batch.document_texts, "document")
    cut = [(truncated(queries, s, normalize=True), truncated(documents, s, normalize=True)) for s in sizes]
    scores = [list_scores(batch, q, d) for q, d in [(queries, documents), *cut]]
    expected = torch.stack([list_kl_loss(s, batch.teacher_logits, batch.mask) for s in scores]).mean()
    invariance = configuration_invariance_loss(scores[1:], scores[0], batch.mask)
    assert losses["list_kl"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses["matryoshka_invariance"].item() == pytest.approx(invariance.item(), rel=1e-4)
    assert losses["loss"].item() == pytest.approx((expected + 3 * invariance).item(), rel=1e-5)


def test_prefixes_may_be_drawn_per_step(batch: ListBatch, encoder_folder: Path) -> None:
    spec = spec_of({"name": "list_kl"}, matryoshka={"dimensions": [24, 16, 8], "dimensions_per_step": 1})
    step = StudentStep(fresh_student(encoder_folder, spec), spec.training.objective)
    torch.manual_seed(0)
    values = {round(step(batch)["list_kl"].item(), 6) for _ in range(20)}
    assert len(values) == 3, "one prefix at a time, and each has its turn"


def test_a_previous_student_is_a_constant_that_the_term_gets(batch: ListBatch, encoder_folder: Path) -> None:
    spec = spec_of({"name": "nspt"})
    student = fresh_student(encoder_folder, spec)
    previous = copy.deepcopy(student).requires_grad_(False)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    step = StudentStep(student, spec.training.objective, previous=previous)
    losses = step(batch)
    losses["loss"].backward()
    queries, documents = student.embed(batch.query_texts, "query"), student.embed(batch.document_texts, "document")
    tensors = step_tensors(batch, queries, documents)
    expected = nspt_loss(
        queries,
        documents,
        previous_query_embeddings=previous.embed(batch.query_texts, "query"),
        previous_document_embeddings=previous.embed(batch.document_texts, "document"),
        positive_document=tensors["positive_document"],
        relevant=tensors["relevant"],
    )
    assert losses["nspt"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert all(parameter.grad is None for parameter in previous.parameters())
    assert not any(name.startswith("_previous") for name in step.state_dict())


def test_which_objectives_need_a_previous_student() -> None:
    assert [n for n, i in OBJECTIVES.items() if needs_previous_student([i.term(name=n)])] == ["nspt"]


def test_a_missing_previous_student_is_refused(encoder_folder: Path) -> None:
    spec = spec_of({"name": "nspt"})
    with pytest.raises(ValueError, match="previous student"):
        StudentStep(fresh_student(encoder_folder, spec), spec.training.objective)


def learned_run(
    folder: Path, spec: DistillationSpec, batch: ListBatch, *, steps: int, checkpoints: Checkpoints | None = None
) -> tuple[list[float], StudentStep]:
    torch.manual_seed(3)
    step = StudentStep(fresh_student(folder, spec), spec.training.objective)
    values: list[float] = []

    def on_step(report: Any) -> None:
        values.append(report.losses["info_nce.temperature"])
        if report.step == steps:
            raise KeyboardInterrupt

    def open_batches(start: StreamPosition) -> Any:
        return ((batch, StreamPosition(0, i + 1)) for i in range(start.ordinal, 6))

    try:
        train(step, step, open_batches, SETTINGS, on_step=on_step, checkpoints=checkpoints)
    except KeyboardInterrupt:
        assert len(values) <= steps
    return values, step


def test_a_learned_temperature_moves_and_survives_a_crash(
    batch: ListBatch, encoder_folder: Path, tmp_path: Path
) -> None:
    spec = spec_of({"name": "info_nce", "temperature": 0.2, "learn": ["temperature"]})
    whole, _ = learned_run(encoder_folder, spec, batch, steps=99)
    assert whole[0] == pytest.approx(0.2)
    assert len({round(value, 9) for value in whole}) == 6, "it moves at every step"

    def checkpoints() -> Checkpoints:
        return Checkpoints(tmp_path, run_fingerprint="run", keep=2)

    learned_run(encoder_folder, spec, batch, steps=5, checkpoints=checkpoints())
    resumed, _ = learned_run(encoder_folder, spec, batch, steps=99, checkpoints=checkpoints())
    assert resumed == whole[4:], "from the checkpoint after step 4, bit by bit"


@pytest.mark.parametrize(
    ("term", "parameter", "beyond", "bound"),
    [
        ({"name": "info_nce", "temperature": 0.05}, "temperature", -20.0, 0.01),
        ({"name": "info_nce", "temperature": 0.003}, "temperature", -20.0, 0.003),
        ({"name": "siglip", "scale": 10.0}, "scale", 20.0, 100.0),
        ({"name": "siglip", "scale": 150.0}, "scale", 20.0, 150.0),
    ],
)
def test_a_learned_number_stays_where_softmax_is_not_one_hot_and_can_come_back(
    batch: ListBatch, encoder_folder: Path, term: dict[str, Any], parameter: str, beyond: float, bound: float
) -> None:
    """Clamped in the graph it would have no gradient at the bound, and stay there for good."""
    spec = spec_of(term | {"learn": [parameter]})
    step = StudentStep(fresh_student(encoder_folder, spec), spec.training.objective)
    (learned,) = step.learned.parameters()
    with torch.no_grad():
        learned.fill_(beyond)
    losses = step(batch)
    losses["loss"].backward()
    assert losses[f"{term['name']}.{parameter}"].item() == pytest.approx(bound, rel=1e-5)
    assert learned.grad is not None
    assert learned.grad.item() != 0


def test_what_the_objective_learns_has_a_learning_rate_of_its_own(batch: ListBatch, encoder_folder: Path) -> None:
    """At the student's rate, a temperature would not get anywhere within an epoch."""

    def moved(rate: float) -> float:
        spec = spec_of({"name": "info_nce", "temperature": 0.2, "learn": ["temperature"]})
        step = StudentStep(fresh_student(encoder_folder, spec), spec.training.objective)
        settings = dataclasses.replace(SETTINGS, learning_rate=1e-9, learning_rates={"learned": rate})
        train(step, step, lambda _: iter([(batch, StreamPosition(0, 1))]), settings, on_step=lambda _: None)
        return abs(step.learned.report(spec.training.objective)["info_nce.temperature"].item() - 0.2)

    assert moved(1e-2) > 100 * moved(1e-5) > 0


@pytest.mark.parametrize(
    ("student", "width"), [({}, 32), ({"heads": {"serve": "contrastive", "dimension": 12}}, 12)], ids=str
)
def test_heads_that_do_not_divide_a_vector_are_refused_before_anything_is_mined(
    encoder_folder: Path, student: dict[str, Any], width: int
) -> None:
    fitting, other = ({"name": "amcl", "heads": heads} for heads in (4, 5))
    spec = spec_of(fitting, **student)
    require_fitting(fresh_student(encoder_folder, spec), spec.training.objective)
    spec = spec_of(other, **student)
    with pytest.raises(ModelError, match=rf"training\.objective\.0\.heads: amcl cannot cut {width} .* into 5"):
        require_fitting(fresh_student(encoder_folder, spec), spec.training.objective)


def test_heads_have_a_temperature_each(batch: ListBatch, encoder_folder: Path) -> None:
    spec = spec_of({"name": "amcl", "heads": 4, "learn": ["temperature", "temperature_slope"]})
    step = StudentStep(fresh_student(encoder_folder, spec), spec.training.objective)
    step(batch)["loss"].backward()
    learned = dict(step.learned.named_parameters())
    assert len(learned) == 2
    for parameter in learned.values():
        assert parameter.shape == (4,)
        assert parameter.grad is not None
        assert bool((parameter.grad != 0).all())
