"""What must hold for every batch of embeddings: order, size of vectors, and who may not matter.

Why: loops over equations fix the value on batches of one size. These fix who may influence what on batches of any size,
down to one query, with ragged relevance and queries without a positive, which is what a training loop relies on.
"""

import pytest
import torch
from contrastive_batch import few, seeds
from hypothesis import given
from hypothesis import strategies as st
from sample_inputs import axes, parameters
from torch import Tensor
from torch.nn import functional

from pipelines.objectives.registry import OBJECTIVES

ALL_WAYS = ("query_to_document", "document_to_query", "query_to_query", "document_to_document")
FORWARD = {"directions": ("query_to_document",)}
PAPER = {"same_view_negatives": True, "symmetric": True}
FIXED = {"mixing": torch.tensor(0.3, dtype=torch.float64)}
CASES = {
    "info_nce": {},
    "info_nce all ways": {"directions": ALL_WAYS},
    "info_nce per direction": {"directions": ALL_WAYS, "partition": "per_direction", "label_smoothing": 0.1},
    "info_nce teacher": {"teacher_margin": 0.5, "hardness_mode": "hard_negatives", "hardness_strength": 3.0},
    "siglip": {},
    "sup_con": {},
    "sup_con forward": FORWARD,
    "dcl": {},
    "dcl paper": PAPER,
    "dclw": {},
    "dclw paper": PAPER,
    "cmim": {},
    "decoupled_softmax": {},
    "decoupled_softmax binary": {"form": "binary"},
    "soft_top_k": {},
    "cwcl": {},
    "uniformity_alignment": {},
    "unpg": {},
    "amcl": {},
    "mochi without draws": {"negative_mixtures": 0, "query_mixtures": 0},
    "metrix fixed": FIXED | {"hardest": 3},
    "nspt": {},
    "mw": {},
}
QUERIES_ARE_NEGATIVES = {
    "info_nce all ways",
    "info_nce per direction",
    "sup_con",
    "dcl paper",
    "dclw paper",
}
"""Their docstrings say that a query without a positive still serves as a negative."""
OTHER_POSITIVES_ARE_LEFT_OUT = {
    *("info_nce", "info_nce teacher", "dcl", "dclw", "cmim", "unpg", "amcl", "mochi without draws", "metrix fixed"),
    *("uniformity_alignment", "nspt", "info_nce all ways", "dcl paper", "dclw paper"),
}
"""A document that is relevant to all pushes and pulls nobody; in the other objectives it is one more positive."""
Batch = dict[str, Tensor]


def value_of(case: str, batch: Batch, **changed) -> Tensor:
    name = case.partition(" ")[0]
    info = OBJECTIVES[name]
    if "batch_scores" in info.tensors:
        batch = batch | {"batch_scores": batch["query_embeddings"] @ batch["document_embeddings"].T}
    offered = {tensor: batch[tensor] for tensor in info.tensors if tensor in batch}
    return info.function(**offered | parameters(name) | CASES[case] | changed)


def ragged(seed: int) -> Batch:
    """One to six queries, two to ten documents; about every fourth query has no positive."""
    generator = torch.Generator().manual_seed(seed)
    queries, documents = (int(torch.randint(*bounds, (), generator=generator)) for bounds in ((1, 7), (2, 11)))

    def unit(rows: int) -> Tensor:
        return functional.normalize(torch.randn(rows, 4, generator=generator, dtype=torch.float64), dim=1)

    positive = torch.randint(0, documents, (queries,), generator=generator)
    unlabelled = torch.rand(queries, generator=generator) < 0.25
    positive[unlabelled] = -1
    relevant = torch.rand(queries, documents, generator=generator) < 0.15
    relevant[unlabelled] = False
    relevant[~unlabelled, positive[~unlabelled]] = True
    scored = (torch.rand(queries, documents, generator=generator) < 0.6) | relevant
    texts = torch.randint(0, 6, (queries,), generator=generator)
    return {
        "query_embeddings": unit(queries),
        "document_embeddings": unit(documents),
        "previous_query_embeddings": unit(queries),
        "previous_document_embeddings": unit(documents),
        "positive_document": positive,
        "relevant": relevant,
        "same_query": texts == texts.unsqueeze(1),
        "scored": scored,
        "batch_teacher_scores": 3 * torch.randn(queries, documents, generator=generator, dtype=torch.float64) * scored,
    }


def with_gradients(case: str, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient of the queries, gradient of the documents."""
    sides = ("query_embeddings", "document_embeddings")
    leaves = {side: batch[side].clone().requires_grad_() for side in sides}
    loss = value_of(case, batch | leaves)
    loss.backward()
    return loss.detach(), *(leaves[side].grad for side in sides)


def same(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def reordered(batch: Batch, axis: str, order: Tensor) -> Batch:
    moved = {}
    for name, value in batch.items():
        moved[name] = value
        for dimension, along in enumerate(axes(name)):
            if along == axis:
                moved[name] = moved[name].index_select(dimension, order)
    if axis == "documents":
        positive = moved["positive_document"]
        moved["positive_document"] = torch.where(positive >= 0, order.argsort()[positive.clamp(min=0)], -1)
    return moved


@pytest.mark.parametrize("case", CASES)
@given(seed=seeds)
@few
def test_queries_and_documents_come_in_any_order(case, seed):
    batch = ragged(seed)
    generator = torch.Generator().manual_seed(seed)
    queries, documents = (torch.randperm(len(batch[f"{s}_embeddings"]), generator=generator) for s in SIDES)
    loss, of_queries, of_documents = with_gradients(case, batch)
    mixed = reordered(reordered(batch, "queries", queries), "documents", documents)
    same(with_gradients(case, mixed), (loss, of_queries[queries], of_documents[documents]))


SIDES = ("query", "document")


@pytest.mark.parametrize("case", [c for c in CASES if c not in QUERIES_ARE_NEGATIVES])
@given(seed=seeds)
@few
def test_one_more_query_without_a_positive_changes_nothing_and_learns_nothing(case, seed):
    batch = ragged(seed)
    more = {
        name: torch.cat([value, value[:1]]) if axes(name)[0] == "queries" else value
        for name, value in batch.items()
        if name != "same_query"
    }
    more["query_embeddings"][-1] = more["query_embeddings"][-1].flip(0)
    more["positive_document"][-1] = -1
    more["relevant"][-1] = False
    more["same_query"] = torch.block_diag(batch["same_query"].byte(), torch.ones(1, 1)) > 0
    loss, of_queries, of_documents = with_gradients(case, batch)
    same(with_gradients(case, more), (loss, torch.cat([of_queries, of_queries.new_zeros(1, 4)]), of_documents))


@pytest.mark.parametrize("case", sorted(OTHER_POSITIVES_ARE_LEFT_OUT))
@given(seed=seeds)
@few
def test_one_more_document_that_is_relevant_to_every_query_changes_nothing(case, seed):
    """A copy of what all queries ask for, say: neither a negative, nor part of any count."""
    batch = ragged(seed)
    labelled = batch["positive_document"] >= 0
    more = dict(batch)
    for name in ("document_embeddings", "previous_document_embeddings"):
        more[name] = torch.cat([batch[name], batch[name][:1]])
    for name, column in (("relevant", labelled), ("scored", labelled), ("batch_teacher_scores", labelled * 9.0)):
        more[name] = torch.cat([batch[name], column.to(batch[name].dtype).unsqueeze(1)], dim=1)
    loss, of_queries, of_documents = with_gradients(case, batch)
    same(with_gradients(case, more), (loss, of_queries, torch.cat([of_documents, of_documents.new_zeros(1, 4)])))


TEMPERED = {case: ("temperature",) for case in CASES if "temperature" in parameters(case.partition(" ")[0])}
TEMPERED |= {"dclw": ("temperature", "sigma"), "dclw paper": ("temperature", "sigma")}
NORMALISE = {"amcl", "unpg", "uniformity_alignment"}
HARDENED = {"info_nce teacher"}
"""Hardness is similarity times strength, before the temperature."""


@pytest.mark.parametrize("case", [c for c in TEMPERED if c not in NORMALISE | HARDENED | {"mw"}])
@given(seed=seeds, factor=st.floats(0.1, 10))
@few
def test_larger_vectors_at_a_higher_temperature_are_the_same_loss(case, seed, factor):
    """All dot products grow by the factor, of queries with queries as well."""
    batch = ragged(seed)
    sides = [name for name in batch if name.endswith("embeddings")]
    grown = batch | {name: batch[name] * factor**0.5 for name in sides}
    defaults = parameters(case.partition(" ")[0])
    hotter = {name: defaults[name] * factor for name in TEMPERED[case]}
    same([value_of(case, grown, **hotter)], [value_of(case, batch)])


@pytest.mark.parametrize("case", sorted(NORMALISE))
@given(seed=seeds)
@few
def test_where_vectors_are_normalised_their_lengths_do_not_matter(case, seed):
    batch = ragged(seed)
    generator = torch.Generator().manual_seed(seed)
    stretched = batch | {
        f"{side}_embeddings": batch[f"{side}_embeddings"]
        * (0.1 + torch.rand(len(batch[f"{side}_embeddings"]), 1, generator=generator, dtype=torch.float64))
        for side in SIDES
    }
    same([value_of(case, stretched)], [value_of(case, batch)])


@pytest.mark.parametrize("case", [c for c in CASES if c != "amcl"])  # whose heads are slices of the coordinates
@given(seed=seeds)
@few
def test_turning_the_whole_space_changes_nothing(case, seed):
    batch = ragged(seed)
    generator = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))
    turned = {name: value @ turn if name.endswith("embeddings") else value for name, value in batch.items()}
    same([value_of(case, turned)], [value_of(case, batch)])


@pytest.mark.parametrize(
    "case", ["info_nce", "sup_con forward", "dcl", "cmim", "decoupled_softmax", "soft_top_k", "mochi without draws"]
)
@given(seed=seeds)
@few
def test_an_offset_per_query_is_nothing_to_learn(case, seed):
    """Moving all documents by one vector adds a constant to each query's similarities: a softmax must not see it."""
    batch = ragged(seed)
    offset = torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    moved = batch | {"document_embeddings": batch["document_embeddings"] + offset}
    same([value_of(case, moved)], [value_of(case, batch)])


def test_the_random_batches_have_what_they_are_for():
    """Guards the guard: single queries, unlabelled ones, other positives, shared texts."""
    drawn = [ragged(seed) for seed in range(200)]
    assert any(len(b["query_embeddings"]) == 1 for b in drawn)
    assert any(bool((b["positive_document"] < 0).all()) for b in drawn)
    assert sum(bool((b["relevant"].sum(1) > 1).any()) for b in drawn) > 50
    assert sum(bool(b["same_query"].triu(1).any()) for b in drawn) > 50
