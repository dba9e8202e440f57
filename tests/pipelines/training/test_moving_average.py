"""Slow copies of a student: what they average, what their queue holds, and that nobody learns from it what is false.

Why: a queue is hundreds of batches' documents, and whichever of them is relevant to a query would push against its own
positive; a slow copy that took a gradient, or an average that is not the one exported, would be noticed by nobody.
"""

import copy
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from steps_for_tests import batch_of, hard_batch, ranked_row, spec_of, student_of
from torch import Tensor, nn

from pipelines.corpus.dataset import Dataset
from pipelines.objectives.info_nce import info_nce_loss
from pipelines.objectives.registry import OBJECTIVES, term_parameters
from pipelines.spec import MomentumSpec
from pipelines.student.model import DualEncoder
from pipelines.training.batches import ListBatch
from pipelines.training.moving_average import DocumentQueue, SlowCopy, text_keys
from pipelines.training.step_tensors import step_tensors
from pipelines.training.student_step import StudentStep

INFO_NCE = [{"name": "info_nce"}]


@pytest.fixture(scope="module")
def student(encoder_folder: Path) -> DualEncoder:
    return student_of(encoder_folder, spec_of(INFO_NCE))


def step_of(student: DualEncoder, objective: list[dict[str, Any]], *, size: int = 64, **settings: Any) -> StudentStep:
    """With a queue, and the student's own copy."""
    momentum = MomentumSpec(queue_size=size, decay=0.5)
    terms = spec_of([*objective]).training.objective
    return StudentStep(copy.deepcopy(student), terms, momentum=momentum, **settings)


def shaken(step: StudentStep, seed: int) -> None:
    """Weights as after an optimizer step."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in step.student.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))


def learn(step: StudentStep, batch: ListBatch, *, seed: int) -> None:
    """A step as the loop makes it, the gradient thrown away."""
    step(batch)
    shaken(step, seed)
    step.follow_weights()


class Normed(nn.Module):
    """A layer with a buffer that moves."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 2)


@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=6), st.floats(0, 0.999))
def test_a_slow_copy_is_the_exponential_average_of_all_weights_so_far(seeds: list[int], decay: float) -> None:
    """slow_n = decay^n w_0 + (1 - decay) sum_k decay^(n-k) w_k; counted and measured numbers are the newest."""
    model = Normed().double()
    slow = SlowCopy(model, decay=decay)
    history = [copy.deepcopy(model.state_dict())]
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        model.norm(torch.randn(4, 3, generator=generator, dtype=torch.float64))
        slow.follow(model)
        history.append(copy.deepcopy(model.state_dict()))
    n = len(seeds)
    shares = [decay**n, *((1 - decay) * decay ** (n - k) for k in range(1, n + 1))]
    for name, found in slow.student.state_dict().items():
        expected = history[-1][name]
        if name in dict(model.named_parameters()):
            expected = sum(share * state[name] for share, state in zip(shares, history, strict=True))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_slow_copy_never_trains(student: DualEncoder, dataset: Dataset) -> None:
    step = step_of(student, INFO_NCE, ema_decay=0.9).train()
    learn(step, hard_batch(dataset, 1), seed=1)
    step(hard_batch(dataset))["loss"].backward()
    assert step.student.training
    for slow in (step.averaged, step.momentum):
        assert slow is not None
        assert not any(module.training for module in slow.modules()), "dropout off, whatever the student's mode"
        assert not any(p.requires_grad or p.grad is not None for p in slow.parameters())
    assert step.outcome is step.averaged.student


@given(st.integers(1, 9), st.lists(st.integers(0, 12), max_size=8))
def test_a_queue_holds_the_newest_whatever_the_sizes_of_batches(size: int, batches: list[int]) -> None:
    """First in, first out; of a batch larger than the queue its end stays."""
    queue, expected, count = DocumentQueue(size, 2), deque(maxlen=size), 0
    for batch in batches:
        numbers = torch.arange(count, count + batch)
        queue.put(torch.stack([numbers, -numbers], dim=1).double(), numbers)
        expected.extend(numbers.tolist())
        count += batch
        assert len(queue) == len(expected)
        newest_first = list(reversed(expected))
        assert queue.keys[: len(queue)].tolist() == newest_first
        assert queue.vectors[: len(queue)].tolist() == [[number, -number] for number in newest_first]
    assert queue.vectors.dtype == torch.float32


def test_what_enters_the_queue_is_what_the_slow_copy_makes_of_the_documents(
    student: DualEncoder, dataset: Dataset
) -> None:
    step, batch = step_of(student, INFO_NCE), hard_batch(dataset)
    learn(step, batch, seed=1)
    slow = copy.deepcopy(student)
    with torch.no_grad():
        for parameter, new in zip(slow.parameters(), step.student.parameters(), strict=True):
            parameter.copy_(0.5 * parameter + 0.5 * new)
        expected = slow.embed(batch.document_texts, "document").flip(0)
    torch.testing.assert_close(step.queue.views(step.momentum).served, expected, rtol=0, atol=1e-6)
    assert torch.equal(step.queue.keys[: len(expected)], text_keys(batch.document_texts).flip(0))


def by_hand(step: StudentStep, batch: ListBatch, queue_texts: list[str]) -> Tensor:
    """info_nce on documents with those of the queue behind them."""
    queries, documents = (
        step.student.embed(texts, kind)
        for texts, kind in ((batch.query_texts, "query"), (batch.document_texts, "document"))
    )
    tensors = step_tensors(batch, queries, documents)
    known = [[text in texts for text in queue_texts] for texts in batch.known_relevant]
    return info_nce_loss(
        queries,
        torch.cat([documents, step.momentum.student.views(step.queue.vectors[: len(queue_texts)]).served]),
        tensors["positive_document"],
        relevant=torch.cat([tensors["relevant"], torch.tensor(known)], dim=1),
        same_query=tensors["same_query"],
        **term_parameters(spec_of(INFO_NCE).training.objective[0]),
    )


def test_info_nce_with_a_queue_is_info_nce_on_the_concatenated_documents(
    student: DualEncoder, dataset: Dataset
) -> None:
    """Value and gradient. The queue holds this batch's own positives, copies and other positives too: no negatives."""
    step, batch = step_of(student, INFO_NCE), hard_batch(dataset)
    before = hard_batch(dataset, 1)
    learn(step, batch, seed=1)
    learn(step, before, seed=2)
    queue_texts = [*reversed(before.document_texts), *reversed(batch.document_texts)]
    assert len(step.queue) == len(queue_texts)
    assert sum(text in known for known in batch.known_relevant for text in queue_texts) >= 8
    loss = step(batch)["loss"]
    loss.backward()
    found = {
        name: parameter.grad.clone() for name, parameter in step.student.named_parameters() if "pooler" not in name
    }
    step.zero_grad()
    expected = by_hand(step, batch, queue_texts)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, step.student.get_parameter(name).grad, rtol=1e-3, atol=1e-6)
    step.queue.keys.zero_()  # as if nobody knew what stands there
    assert step(batch)["loss"].item() > loss.item() + 1e-3


def test_documents_known_to_be_relevant_count_for_other_queries_only(student: DualEncoder, dataset: Dataset) -> None:
    """One query: a queue of its positive, its copy, and its other positive changes nothing at all."""
    batch = batch_of(dataset, [ranked_row("train3", ["d0", "d4", "d9"], gold=("d0", "d9"))])
    relevant = batch_of(dataset, [ranked_row("train4", ["d59", "d9"])])
    other = batch_of(dataset, [ranked_row("train4", ["d59", "d9", "d12"])])
    alone = StudentStep(student, spec_of(INFO_NCE).training.objective)(batch)["loss"].item()
    for earlier, same in ((relevant, True), (other, False)):
        step = step_of(student, INFO_NCE)
        step(earlier)
        step.follow_weights()
        assert (step(batch)["loss"].item() == pytest.approx(alone, abs=1e-6)) == same


FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "heads and prefixes": {"heads": {"serve": "contrastive"}, "matryoshka": {"dimensions": [16, 8]}},
}
POSITIVES_AND_SCORED = {"nspt", "metrix", "uniformity_alignment"}
"""They read the batch's documents, but only positives and what the teacher scored; nspt refuses a queue (spec)."""


@pytest.mark.parametrize("form", FORMS)
def test_every_objective_that_looks_at_the_documents_looks_at_the_queue(
    encoder_folder: Path, dataset: Dataset, form: str
) -> None:
    """And those that read lists are what they were without. All stay finite, and the slow copy takes no gradient."""
    student = student_of(encoder_folder, spec_of([*INFO_NCE, {"name": "list_kl"}], **FORMS[form]))
    batch, changed = hard_batch(dataset), set()
    for name, info in OBJECTIVES.items():
        if name == "nspt":
            continue
        term = info.term(name=name, **({"easy_negatives": True} if name == "cprd" else {}))
        step = StudentStep(copy.deepcopy(student), [term], momentum=MomentumSpec(queue_size=32, decay=0.5))
        torch.manual_seed(1)
        before = step(batch)[name].item()
        step(hard_batch(dataset, 1))
        step.follow_weights()
        torch.manual_seed(1)
        loss = step(batch)[name]
        loss.backward()
        gradients = [parameter.grad for parameter in step.student.parameters() if parameter.grad is not None]
        assert np.isfinite(loss.item()), name
        assert all(bool(gradient.isfinite().all()) for gradient in gradients), name
        assert all(parameter.grad is None for parameter in step.momentum.parameters()), name
        changed |= {name} if loss.item() != pytest.approx(before, rel=1e-6) else set()
    readers = {n for n, i in OBJECTIVES.items() if {"document_embeddings", "batch_scores"} & set(i.tensors)}
    assert changed == readers - POSITIVES_AND_SCORED


def test_slow_copies_and_queue_travel_in_the_state(student: DualEncoder, dataset: Dataset) -> None:
    """A checkpoint is this state: who resumes has the queue and the averages of who was killed, to the last bit."""
    step = step_of(student, INFO_NCE, ema_decay=0.9, size=20)
    for number in range(3):
        learn(step, hard_batch(dataset, number), seed=number)
    again = step_of(student, INFO_NCE, ema_decay=0.9, size=20)
    again.load_state_dict(step.state_dict())
    batch = hard_batch(dataset, 3)
    for each in (step, again):
        learn(each, batch, seed=9)
    assert len(again.queue) == 20
    assert again(batch)["loss"].item() == step(batch)["loss"].item()
    assert all(torch.equal(value, step.state_dict()[name]) for name, value in again.state_dict().items())
