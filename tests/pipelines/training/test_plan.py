"""What a run is said to cost beforehand: numbers one can count by hand, and a run that does not notice being asked.

Why: the plan is made of the first batch in the middle of training it; a draw or a gradient more, and runs with and
without it would be two different runs.
"""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from steps_for_tests import hard_batch, spec_of, student_of

from pipelines.corpus.dataset import Dataset
from pipelines.student.model import DualEncoder
from pipelines.training.batches import ListBatch
from pipelines.training.encoding import EncodingSettings, StepTexts
from pipelines.training.plan import TrainingPlan, plan_training

WORDS = {"heart lung": 4, "liver": 3, "bone skin blood brain nerve": 7}
"""Texts of the tokenizer's own words, and their tokens with [CLS] and [SEP]."""


@pytest.fixture
def student(encoder_folder: Path) -> DualEncoder:
    """With dropout, so that a probe in training mode draws numbers."""
    return student_of(encoder_folder, spec_of([{"name": "list_kl"}]), dropout=0.1).train()


@pytest.fixture
def batch(dataset: Dataset) -> ListBatch:
    short, shorter, long = WORDS
    return dataclasses.replace(
        hard_batch(dataset), query_texts=[shorter, short, shorter], document_texts=[long, short, long, short]
    )


def plan_of(student: DualEncoder, batch: ListBatch, *, world: int = 1, budget: int = 8, **more: bool) -> TrainingPlan:
    settings = EncodingSettings(tokens_per_micro_batch=budget, **more)
    return plan_training(student, StepTexts.of(student, batch), settings, queries=3, steps=7, world=world)


def test_texts_tokens_padding_and_passes_are_those_counted_by_hand(student: DualEncoder, batch: ListBatch) -> None:
    """Lengths 7 4 4 3, each text once; 8 tokens a pass make [7] [4 4] [3], 14 tokens [7 4] [4 3]."""
    plan = plan_of(student, batch)
    assert (plan.steps, plan.queries_per_step, plan.texts_per_step) == (7, 3, 4)
    assert (plan.tokens_per_step, plan.micro_batches_per_step, plan.padding_share) == (18, 3, 0.0)
    wider = plan_of(student, batch, budget=14)
    assert (wider.tokens_per_step, wider.micro_batches_per_step) == (18, 2)
    assert wider.padding_share == pytest.approx(4 / 22)


def test_the_time_of_all_steps_is_that_of_one_times_their_number(student: DualEncoder, batch: ListBatch) -> None:
    plan = plan_of(student, batch)
    assert plan.seconds_per_step > 0
    assert plan.expected_seconds == pytest.approx(7 * plan.seconds_per_step)
    assert "7 steps of 3 queries: 4 texts and 18 tokens a step" in plan.sentence()


@pytest.mark.parametrize("training", [True, False])
def test_weights_gradients_mode_and_draws_are_as_before(student: DualEncoder, batch: ListBatch, training: bool) -> None:
    student.train(training)
    torch.manual_seed(5)
    for parameter in student.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = copy.deepcopy(student)
    gradients = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
    torch.manual_seed(6)
    expected = torch.rand(4)
    torch.manual_seed(6)
    plan_of(student, batch, gradient_cache=True)
    assert torch.equal(torch.rand(4), expected)
    assert student.training == training
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in student.state_dict().items())
    assert all(torch.equal(parameter.grad, gradients[name]) for name, parameter in student.named_parameters())


def test_the_first_step_does_not_know_whether_it_was_planned(student: DualEncoder, batch: ListBatch) -> None:
    found = []
    for asked in (False, True):
        torch.manual_seed(2)
        if asked:
            plan_of(student, batch)
        vectors = student.embed(batch.document_texts, "document")
        vectors.square().sum().backward()
        found.append([vectors.detach(), *(p.grad.clone() for p in student.parameters() if p.grad is not None)])
        student.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
