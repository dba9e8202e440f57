"""What the contrastive group refuses, and whom it leaves alone: unlabelled queries, other positives.

Why: a wrong value here would train, with half the loss or with positives pushed away.
"""

import math

import pytest
import torch
from contrastive_batch import Batch
from pydantic import ValidationError

from pipelines.errors import ObjectiveError
from pipelines.objective_terms import InfoNCE, SupCon
from pipelines.objectives.cmim import cmim_loss
from pipelines.objectives.dcl import dcl_loss, dclw_loss
from pipelines.objectives.decoupled_softmax import decoupled_softmax_loss
from pipelines.objectives.info_nce import info_nce_loss
from pipelines.objectives.siglip import siglip_loss
from pipelines.objectives.soft_top_k import log_soft_top_k, soft_top_k_loss
from pipelines.objectives.sup_con import sup_con_loss

EMBEDDING_LOSSES = [info_nce_loss, siglip_loss, sup_con_loss, dcl_loss, dclw_loss, cmim_loss]


@pytest.mark.parametrize("loss", EMBEDDING_LOSSES)
def test_a_query_without_a_positive_is_left_out_of_the_mean(loss):
    """Counting it would shrink the loss of a half-labelled batch by half."""
    b = Batch(4)
    arguments = {"directions": ("query_to_document",)} if loss is sup_con_loss else {}
    torch.testing.assert_close(
        loss(*b.embeddings, **arguments), loss(b.q[:-1], b.d, b.positive[:-1], **arguments), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("loss", [info_nce_loss, dcl_loss, dclw_loss, cmim_loss])
def test_a_query_with_no_negative_left_adds_nothing(loss):
    q = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    value = loss(q, torch.randn(4, 3, dtype=torch.float64), torch.tensor([2]), relevant=torch.ones(1, 4) > 0)
    value.backward()
    assert value.item() == 0
    assert not bool(q.grad.any())


@pytest.mark.parametrize("loss", EMBEDDING_LOSSES)
def test_no_other_relevant_document_is_pushed_away(loss):
    """The gradient of a descent step on a query's other positive is never away from the query."""
    q = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    d = torch.tensor([[0.6, 0.8], [0.9, 0.436], [0.0, 1.0], [-1.0, 0.1]], dtype=torch.float64, requires_grad=True)
    relevant = torch.tensor([[True, True, False, False]])
    arguments = {} if loss is siglip_loss else {"temperature": 1.0}
    loss(q, d, torch.tensor([0]), relevant=relevant, **arguments).backward()
    assert float(d.grad[1] @ q[0]) <= 0
    assert float(d.grad[2] @ q[0]) > 0


def test_finite_embeddings_whose_sum_overflows_are_accepted():
    """The check for NaN looks at a sum first; an overflow there says nothing about the numbers."""
    large = torch.full((2, 4), 6e4, dtype=torch.float16)
    assert not bool(torch.isfinite(large.sum()))
    assert info_nce_loss(large, large, torch.tensor([0, 1])).item() == pytest.approx(math.log(2))


B = Batch(5)
FLAGS = torch.zeros(5, 9, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: info_nce_loss(*B.embeddings, temperature=torch.tensor(0.0)), "temperature must be a positive"),
        (lambda: info_nce_loss(*B.embeddings, temperature=-1), "temperature must be a positive"),
        (lambda: info_nce_loss(*B.embeddings, directions=()), "directions must be"),
        (lambda: info_nce_loss(*B.embeddings, directions=("query_to_query",)), "directions must be"),
        (lambda: info_nce_loss(*B.embeddings, directions=("query_to_document",) * 2), "directions must be"),
        (lambda: info_nce_loss(*B.embeddings, directions=("query_to_document", "up")), "directions must be"),
        (lambda: info_nce_loss(*B.embeddings, partition="mean"), "unknown partition 'mean'"),
        (lambda: info_nce_loss(*B.embeddings, label_smoothing=1.0), r"label_smoothing must be in \[0, 1\), got 1.0"),
        (lambda: info_nce_loss(*B.embeddings, hardness_mode="easy"), "unknown hardness_mode 'easy'"),
        (lambda: info_nce_loss(*B.embeddings, hardness_mode="hard_negatives"), "needs scored"),
        (lambda: info_nce_loss(*B.embeddings, hardness_strength=2.0), "2.0 is without effect"),
        (lambda: info_nce_loss(*B.embeddings, hardness_strength=math.nan), "hardness_strength must be"),
        (lambda: info_nce_loss(*B.embeddings, teacher_margin=0.0), "teacher_margin needs batch_teacher_scores"),
        (
            lambda: info_nce_loss(*B.embeddings, teacher_margin=-1.0, batch_teacher_scores=B.teacher, scored=B.scored),
            "teacher_margin must be .* got -1.0",
        ),
        (
            lambda: info_nce_loss(
                *B.embeddings, teacher_margin=0.0, batch_teacher_scores=B.teacher * math.nan, scored=B.scored
            ),
            "batch_teacher_scores has",
        ),
        (lambda: info_nce_loss(*B.embeddings, scored=FLAGS[:, :3]), "scored must be bool"),
        (lambda: siglip_loss(*B.embeddings, scale=0.0), "scale must be a positive"),
        (lambda: siglip_loss(*B.embeddings, scale=torch.tensor(math.nan)), "scale must be a positive"),
        (lambda: siglip_loss(*B.embeddings, bias=math.inf), "bias must be a finite number, got inf"),
        (lambda: siglip_loss(*B.embeddings, bias=torch.tensor(math.nan)), "bias must be a finite"),
        (lambda: sup_con_loss(*B.embeddings, directions=()), "one or both"),
        (lambda: sup_con_loss(*B.embeddings, directions=("query_to_query",)), "one or both"),
        (lambda: sup_con_loss(*B.embeddings, temperature=0.0), "temperature"),
        (lambda: dcl_loss(*B.embeddings, temperature=0.0), "temperature"),
        (lambda: dclw_loss(*B.embeddings, temperature=0.0), "temperature"),
        (lambda: dclw_loss(*B.embeddings, sigma=0.0), "sigma"),
        (lambda: cmim_loss(*B.embeddings, temperature=0.0), "temperature"),
        (lambda: cmim_loss(B.q, B.d[:1], torch.zeros(5, dtype=torch.int64)), "fewer than 2 documents"),
        (lambda: decoupled_softmax_loss(B.teacher, FLAGS, form="soft"), "unknown form 'soft'"),
        (lambda: decoupled_softmax_loss(B.teacher, FLAGS, temperature=0.0), "temperature"),
        (lambda: decoupled_softmax_loss(B.teacher, FLAGS.long()), "relevant must be bool"),
        (lambda: decoupled_softmax_loss(B.teacher[:, :1], FLAGS[:, :1]), "fewer than 2 documents"),
        (lambda: decoupled_softmax_loss(B.teacher.long(), FLAGS), "batch_scores must be a floating"),
        (lambda: decoupled_softmax_loss(B.teacher, FLAGS, relevance_weights=-B.teacher.abs()), "negative value"),
        (lambda: decoupled_softmax_loss(B.teacher, FLAGS, relevance_weights=FLAGS), "relevance_weights must be"),
        (
            lambda: decoupled_softmax_loss(B.teacher, FLAGS, relevance_weights=B.teacher.abs(), form="binary"),
            "'binary' has no weights",
        ),
        (lambda: soft_top_k_loss(B.teacher, FLAGS, k=0), "k must be a positive"),
        (lambda: soft_top_k_loss(B.teacher, FLAGS, alpha=0.0), "alpha must be a positive"),
        (lambda: soft_top_k_loss(B.teacher, FLAGS, iterations=0), "iterations must be a positive"),
        (lambda: soft_top_k_loss(B.teacher * math.nan, FLAGS), "batch_scores has 45 NaN"),
        (lambda: log_soft_top_k(B.teacher, torch.full((5,), 9), alpha=1.0, iterations=9), "k must be from 1 to 8"),
    ],
)
def test_what_would_give_a_wrong_loss_is_refused(call, message):
    with pytest.raises(ObjectiveError, match=message):
        call()


@pytest.mark.parametrize(
    "parameters",
    [
        {"directions": ["query_to_query"]},
        {"directions": ["query_to_document", "query_to_document"]},
        {"directions": ["query_to_document", "sideways"]},
        {"hardness_strength": 3.0},
        {"label_smoothing": 1.0},
        {"teacher_margin": -0.1},
        {"learn": ["label_smoothing"]},
    ],
)
def test_a_job_learns_at_once_that_its_info_nce_cannot_work(parameters):
    """At submission, not in the first training step."""
    with pytest.raises(ValidationError):
        InfoNCE(name="info_nce", **parameters)
    with pytest.raises(ValidationError):
        SupCon(name="sup_con", directions=[])
