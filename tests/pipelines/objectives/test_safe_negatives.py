"""What the teacher calls relevant, or has never seen, is no mixture: mined lists are full of unlabelled positives.

Why: a mixture is a harder negative than any document. Made of a document that answers the query, it teaches the student
to turn away from the answer; and nobody would notice in the loss.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic_batch import (
    DOCUMENTS,
    QUERIES,
    batch,
    close,
    drawn,
    plainly_safe,
    seeds,
    several,
    taught,
    without_teacher,
)

from pipelines.errors import ObjectiveError
from pipelines.objectives.embedding_batch import embedding_batch
from pipelines.objectives.info_nce import info_nce_loss
from pipelines.objectives.metrix import metrix_loss
from pipelines.objectives.mochi import mochi_loss
from pipelines.objectives.safe_negatives import safe_negatives


def checked(values):
    return embedding_batch("any", *(values[n] for n in list(values)[:4]))


@several
@given(seeds, st.sampled_from([None, 0.0, 1.5]), st.sampled_from([None, 0.5, 0.9]))
def test_safe_negatives_are_neither_relevant_nor_liked_by_the_teacher(seed, margin, threshold):
    values = batch(seed)
    safe = safe_negatives(
        checked(values),
        values["batch_teacher_scores"],
        values["scored"],
        margin,
        objective="any",
        teacher_threshold=threshold,
    )
    for i in range(QUERIES):
        expected = plainly_safe(values, i, margin, threshold) if i in taught(values) else []
        assert safe[i].nonzero().squeeze(1).tolist() == expected


def test_without_a_teacher_only_relevance_counts():
    values = batch(0)
    safe = safe_negatives(checked(values), None, None, 0.0, objective="any")
    assert torch.equal(safe, ~values["relevant"] & (values["positive_document"] >= 0).unsqueeze(1))


def test_half_precision_scores_are_compared_in_float32():
    """256 and 257 are one number in bfloat16, and so would 258 - 1.5 and 256 be if the margin were taken there."""
    values = batch(1)
    values["relevant"] = torch.zeros_like(values["relevant"])
    values["scored"] = torch.ones_like(values["scored"])
    values["positive_document"] = torch.zeros_like(values["positive_document"])
    teacher = torch.full((QUERIES, DOCUMENTS), 256.0).bfloat16()
    teacher[:, 0] = 258
    safe = safe_negatives(checked(values), teacher, values["scored"], 1.5, objective="any")
    assert bool(safe[:, 1:].all())


@pytest.mark.parametrize(("threshold", "safe"), [(0.0, 0), (0.5, 3), (1 - 1e-12, 5), (1.0, 6), (None, 6)])
def test_a_threshold_is_compared_as_a_logit(threshold, safe):
    """In float32 the sigmoid of 20 and of 40 is 1, and each would be relevant with a probability of 1."""
    values = batch(1)
    values["positive_document"] = torch.zeros_like(values["positive_document"])
    values["scored"] = torch.ones_like(values["scored"])
    values["relevant"] = torch.arange(DOCUMENTS).expand(QUERIES, -1) > 6
    teacher = torch.tensor([0.0, -40.0, -20.0, -0.001, 0.0, 20.0, 40.0] + [0.0] * (DOCUMENTS - 7)).expand(QUERIES, -1)
    found = safe_negatives(
        checked(values), teacher, values["scored"], None, objective="any", teacher_threshold=threshold
    )
    assert found.sum(dim=1).tolist() == [safe] * QUERIES


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"scored": None}, "come together"),
        ({"batch_teacher_scores": None}, "come together"),
        ({"scored": torch.ones(QUERIES, DOCUMENTS)}, "scored must be bool"),
        ({"batch_teacher_scores": torch.zeros(QUERIES, 3)}, "batch_teacher_scores must be floating of shape"),
        ({"scored": torch.ones(QUERIES, DOCUMENTS, dtype=torch.bool)}, "batch_teacher_scores has .* NaN"),
        ({"teacher_margin": -1.0}, "teacher_margin must be .* -1.0"),
        ({"teacher_margin": math.nan}, "teacher_margin must be .* nan"),
        ({"teacher_threshold": 1.5}, "teacher_threshold must be a probability, got 1.5"),
        ({"teacher_threshold": math.nan}, "teacher_threshold must be .* nan"),
    ],
)
@pytest.mark.parametrize("loss", [mochi_loss, metrix_loss])
def test_wrong_teacher_inputs_are_refused_by_name(loss, change, complaint):
    with pytest.raises(ObjectiveError, match=complaint):
        loss(**(batch(0) | change))


@pytest.mark.parametrize(
    ("logit", "rules"),
    [(5.0, {"teacher_threshold": None}), (3.9, {"teacher_margin": None}), (3.9, {}), (-0.5, {"teacher_margin": 5.0})],
)
def test_what_the_teacher_calls_relevant_is_neither_mixed_nor_pushed_away(logit, rules):
    """Such a document could as well be absent: it gets no gradient, and its place changes nothing.

    It is called so by its distance to the positive (4.0) or by its probability: 3.9 is one of .98.
    """
    values = batch(5)
    values["relevant"] = None
    values["scored"] = torch.ones(QUERIES, DOCUMENTS, dtype=torch.bool)
    values["batch_teacher_scores"] = torch.full((QUERIES, DOCUMENTS), -3.0)
    values["batch_teacher_scores"][:, 9] = logit
    values["batch_teacher_scores"][torch.arange(QUERIES), values["positive_document"].clamp(min=0)] = 4.0
    documents = values["document_embeddings"]
    documents[9] = 3 * values["query_embeddings"].mean(dim=0)  # would be the hardest negative
    mixing, _ = drawn(values, 4, lambda v, i: [j for j in range(DOCUMENTS) if j not in (9, v["positive_document"][i])])
    documents.requires_grad_()
    loss = mochi_loss(**values, mixing=mixing, hardest=4, **rules)
    loss.backward()
    assert not bool(documents.grad[9].any())
    moved = documents.detach().clone()
    moved[9] = -moved[9]
    elsewhere = values | {"document_embeddings": moved}
    assert torch.equal(loss, mochi_loss(**elsewhere, mixing=mixing, hardest=4, **rules))
    assert loss < mochi_loss(**values, mixing=mixing, hardest=4, teacher_margin=None, teacher_threshold=None)


@pytest.mark.parametrize("loss", [mochi_loss, metrix_loss])
def test_what_the_teacher_never_scored_is_never_mixed(loss):
    """The hardest document of the batch is another query's: nobody has judged it for this one."""
    values = batch(5) | {"relevant": None}
    values["scored"] = torch.ones(QUERIES, DOCUMENTS, dtype=torch.bool)
    values["batch_teacher_scores"] = torch.full((QUERIES, DOCUMENTS), -3.0)
    values["batch_teacher_scores"][torch.arange(QUERIES), values["positive_document"].clamp(min=0)] = 4.0
    values["document_embeddings"][9] = 3 * values["query_embeddings"].mean(dim=0)
    values["document_embeddings"].requires_grad_()

    def influence(*, scored):
        """How strongly document 9 is pulled or pushed."""
        flags = values["scored"].clone()
        flags[:, 9] = scored
        torch.manual_seed(0)
        made = loss(**(values | {"scored": flags}))
        return float(torch.autograd.grad(made, values["document_embeddings"])[0][9].abs().sum())

    assert influence(scored=True) > 0
    if loss is metrix_loss:
        assert influence(scored=False) == 0
    else:
        assert influence(scored=False) > 0, "it stays a negative in the denominator"


def test_a_batch_that_the_teacher_never_scored_has_no_mixtures():
    values = batch(5)
    nobody = values | {"scored": torch.zeros_like(values["scored"])}
    close(mochi_loss(**nobody), info_nce_loss(**without_teacher(values)))
    assert metrix_loss(**nobody).item() == 0


def test_without_teacher_scores_every_negative_may_be_mixed():
    """Library use: nobody has scored anything, so the labels alone say what is relevant."""
    values = without_teacher(batch(5))
    assert mochi_loss(**values) > mochi_loss(**values, negative_mixtures=0, query_mixtures=0)
    assert metrix_loss(**values) > 0
