"""A step's texts: each encoded once, within the budget, to the same vectors and gradients however they are cut up.

Why: the gradient cache and the micro-batches promise to change memory and time and nothing else. A vector at the wrong
place, or dropout drawn anew in backward, would train something, and worse.
"""

import copy
import dataclasses
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from steps_for_tests import batch_of, hard_batch, ranked_row, spec_of, student_of
from tiny import WORDS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipelines.corpus.dataset import Dataset
from pipelines.student.model import DualEncoder
from pipelines.training.batches import ListBatch
from pipelines.training.encoding import EncodingSettings, StepTexts, encode_texts
from pipelines.training.student_step import StudentStep
from pipelines.training.workers import ALONE

BUDGETS = (1, 40, 100, 16384)
CONTRASTIVE = [{"name": "list_kl"}, {"name": "info_nce"}]
RANKED = [{"name": "cprd", "easy_negatives": True, "max_valid": 2}, {"name": "info_nce", "weight": 0.1}]


@pytest.fixture(scope="module")
def batch(dataset: Dataset) -> ListBatch:
    return hard_batch(dataset)


@pytest.fixture(scope="module")
def student(encoder_folder: Path) -> DualEncoder:
    """With prompts, so that a query and a document that read the same are different texts."""
    return student_of(encoder_folder, spec_of(CONTRASTIVE, query_prompt="what is ", document_prompt="the "))


@contextmanager
def forward_passes(student: DualEncoder) -> Iterator[list[list[int]]]:
    """Of every forward pass through the backbone, the lengths of its rows."""
    seen: list[list[int]] = []

    def note(_module: Any, _args: Any, inputs: dict[str, Tensor]) -> None:
        seen.append(inputs["attention_mask"].sum(dim=1).tolist())

    handle = student.backbone.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("budget", BUDGETS)
def test_every_distinct_text_is_encoded_once_longest_first_within_the_budget(
    student: DualEncoder, batch: ListBatch, budget: int
) -> None:
    """A query asked twice and a document under two ids cost one each: with hard negatives that is most of the work."""
    distinct = len(set(batch.query_texts)) + len(set(batch.document_texts))
    assert distinct == len(batch.query_texts) + len(batch.document_texts) - 2
    step = StudentStep(student, spec_of(CONTRASTIVE).training.objective, encoding=settings_of(budget))
    with forward_passes(student) as passes:
        step(batch)["loss"].backward()
    lengths = [length for rows in passes for length in rows]
    assert len(lengths) == distinct
    assert lengths == sorted(lengths, reverse=True)
    assert all(len(rows) * max(rows) <= budget or len(rows) == 1 for rows in passes)
    assert sum(lengths) == int(StepTexts.of(student, batch).tokens.lengths.sum())


def test_a_pair_of_queries_in_two_lists_and_one_document_under_two_ids_are_three_texts(
    student: DualEncoder, dataset: Dataset
) -> None:
    twice = batch_of(dataset, [ranked_row("train1", ["d0", "d1"]), ranked_row("train1", ["d59", "d1"])])
    texts = StepTexts.of(student, twice)
    assert (len(texts), texts.query.tolist(), texts.document.tolist()) == (3, [0, 0], [1, 2, 1])


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("budget", BUDGETS)
def test_vectors_are_those_of_the_student_whatever_the_budget(
    student: DualEncoder, batch: ListBatch, budget: int, cache: bool
) -> None:
    texts = StepTexts.of(student, batch)
    queries, documents = encode_texts(student, texts, settings_of(budget, cache=cache), ALONE)
    for found, read, kind in ((queries, batch.query_texts, "query"), (documents, batch.document_texts, "document")):
        torch.testing.assert_close(student.views(found).served, student.embed(read, kind), rtol=0, atol=1e-6)
        assert found.requires_grad


TEXTS = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join), min_size=1, max_size=9)


@given(TEXTS, TEXTS, st.integers(1, 200))
def test_every_query_and_document_finds_its_own_vector(
    student: DualEncoder, batch: ListBatch, queries: list[str], documents: list[str], budget: int
) -> None:
    """Texts of any length in any order, repeated, and the same as query and document."""
    some = dataclasses.replace(batch, query_texts=queries, document_texts=[*documents, queries[0]])
    with torch.no_grad():
        found = encode_texts(student, StepTexts.of(student, some), settings_of(budget), ALONE)
        expected = student.embed(queries, "query"), student.embed(some.document_texts, "document")
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(student.views(ours).served, theirs, rtol=0, atol=1e-6)


def test_vectors_of_a_half_precision_pass_leave_it_as_float32(student: DualEncoder, batch: ListBatch) -> None:
    texts = StepTexts.of(student, batch)
    with torch.no_grad():
        whole, _ = encode_texts(student, texts, settings_of(100), ALONE)
        half, _ = encode_texts(student, texts, EncodingSettings(dtype="bf16", tokens_per_micro_batch=100), ALONE)
    assert half.dtype == torch.float32
    assert 1e-5 < float((whole - half).abs().max()) < 0.5 * float(whole.abs().max())


FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "heads": {"heads": {"serve": "interpolated"}},
    "prefixes": {"matryoshka": {"dimensions": [24, 16, 8], "dimensions_per_step": 2, "invariance_weight": 0.5}},
}


WORDS = "student.backbone.embeddings.word_embeddings.weight"


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("objective", [CONTRASTIVE, RANKED], ids=["contrastive", "cprd"])
@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_cache_changes_neither_losses_nor_gradients(
    encoder_folder: Path, batch: ListBatch, form: str, objective: list[dict[str, Any]], dropout: float
) -> None:
    """Bit by bit: backward computes each micro-batch again with the dropout it had, and prefixes are drawn alike.

    But for the table of words, which the plain step reads once: its gradient is the same sum in another order.
    """
    spec = spec_of(objective, **FORMS[form])
    student = student_of(encoder_folder, spec, dropout=dropout).train()
    for budget in (40, 16384):
        plain, cached = (learned(student, spec, batch, settings_of(budget, cache=cache)) for cache in (False, True))
        words = [
            torch.frombuffer(bytearray(each["gradients"].pop(WORDS)), dtype=torch.float32) for each in (plain, cached)
        ]
        torch.testing.assert_close(words[0], words[1], rtol=0, atol=1e-6 * float(words[0].abs().max()))
        assert plain == cached
        assert any(gradient != b"\0" * len(gradient) for gradient in plain["gradients"].values())


def test_dropout_differs_from_micro_batch_to_micro_batch_and_from_step_to_step(
    encoder_folder: Path, batch: ListBatch
) -> None:
    """Without that the test above would not notice draws that are repeated, or none."""
    spec = spec_of(CONTRASTIVE)
    student = student_of(encoder_folder, spec, dropout=0.2).train()
    same = dataclasses.replace(batch, document_texts=["heart cause", "heart  cause", "Heart cause"])
    torch.manual_seed(0)
    _, first = encode_texts(student, StepTexts.of(student, same), settings_of(1, cache=True), ALONE)
    _, second = encode_texts(student, StepTexts.of(student, same), settings_of(1, cache=True), ALONE)
    vectors = torch.cat([first, second]).detach().numpy()
    assert len(np.unique(vectors.round(5), axis=0)) == 6, "the tokens of all six are equal"


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made within it held at one time, autograd's included."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._known: set[weakref.ref[Any]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        given = {storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for tensor in (leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)):
            if storage(tensor) not in given | self._known:
                size = tensor.untyped_storage().nbytes()
                self._known.add(weakref.ref(tensor.untyped_storage(), lambda gone, size=size: self._free(gone, size)))
                self._now += size
        self.peak = max(self.peak, self._now)
        return results

    def _free(self, gone: Any, size: int) -> None:
        self._known.discard(gone)
        self._now -= size


def storage(tensor: Tensor) -> Any:
    return weakref.ref(tensor.untyped_storage())


def test_with_the_cache_memory_is_that_of_a_micro_batch_however_large_the_batch(
    encoder_folder: Path, dataset: Dataset
) -> None:
    """What the cache is for. Without it every activation of the step waits for backward."""
    spec = spec_of(CONTRASTIVE)
    docs = [f"d{place}" for place in range(48)]
    rows = [ranked_row(f"train{i}", docs[4 * i : 4 * i + 4], gold=(docs[4 * i],)) for i in range(12)]

    def peak(queries: int, *, cache: bool) -> int:
        step = StudentStep(
            student_of(encoder_folder, spec), spec.training.objective, encoding=settings_of(128, cache=cache)
        )
        half_or_whole = batch_of(dataset, rows[:queries])
        with LiveBytes() as live:
            step(half_or_whole)["loss"].backward()
        return live.peak

    assert peak(12, cache=True) < 1.1 * peak(6, cache=True)
    assert peak(12, cache=False) > 1.7 * peak(6, cache=False)
    assert peak(12, cache=True) < peak(12, cache=False) / 3


def settings_of(budget: int, *, cache: bool = False) -> EncodingSettings:
    return EncodingSettings(tokens_per_micro_batch=budget, gradient_cache=cache)


def learned(student: DualEncoder, spec: Any, batch: ListBatch, encoding: EncodingSettings) -> dict[str, Any]:
    """Losses and gradients of one step as bytes; the student stays as it is."""
    step = StudentStep(copy.deepcopy(student), spec.training.objective, encoding=encoding)
    torch.manual_seed(7)
    losses = step(batch)
    losses["loss"].backward()
    return {
        "losses": {name: value.item() for name, value in losses.items()},
        "gradients": {n: p.grad.numpy().tobytes() for n, p in step.named_parameters() if p.grad is not None},
        "next draw": torch.rand(1).item(),
    }
