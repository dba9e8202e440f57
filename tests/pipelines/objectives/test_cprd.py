"""CPRD's options against plain loops: validity by margin, easy and queued negatives, both directions.

Why: the default form is held by golden numbers; the options have none, so the loops here are written from the formula.
"""

import math

import pytest
import torch
from sample_inputs import call, completed, sample, value_and_gradients
from torch import Tensor

from pipelines.errors import ObjectiveError
from pipelines.objectives.cprd import cprd_loss

TEMPERATURE = 0.05


def loop(student: Tensor, teacher: Tensor, valid: list[list[bool]], easy: list[Tensor]) -> tuple[float, int]:
    """The formula, one candidate at a time: total and number of ranked positions."""
    total, terms = 0.0, 0
    for i in range(len(student)):
        order = sorted(range(student.shape[1]), key=lambda k: -float(teacher[i, k]))
        for j, candidate in enumerate(order):
            if not valid[i][candidate]:
                break
            below = [math.exp(float(student[i, k]) / TEMPERATURE) for k in order[j:]]
            below += [math.exp(float(s) / TEMPERATURE) for s in easy[i]]
            total -= math.log(below[0] / sum(below))
            terms += 1
    return total, terms


def lists(seed: int, rows: int = 3, width: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student = torch.rand(rows, width, generator=generator, dtype=torch.float64) - 0.5
    return student, torch.randn(rows, width, generator=generator, dtype=torch.float64) * 4


def test_a_margin_keeps_what_the_teacher_puts_close_to_the_positive():
    student, teacher = lists(1)
    positive = torch.tensor([0, 3, -1])  # the third is measured from the teacher's best
    reference = [float(teacher[0, 0]), float(teacher[1, 3]), float(teacher[2].max())]
    valid = [[float(t) > reference[i] - 2.0 for t in teacher[i]] for i in range(3)]
    assert 0 < sum(map(sum, valid)) < 15, "the margin must decide something"
    total, _ = loop(student, teacher, valid, [torch.empty(0)] * 3)
    actual = cprd_loss(student, teacher, positive=positive, valid_margin=2.0, reduction="sum")
    assert actual.item() == pytest.approx(total, rel=1e-9)


def test_queued_negatives_stand_in_every_denominator_and_only_the_query_learns_from_them():
    student, teacher = lists(2)
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    queue = torch.randn(7, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    options = {"query_embeddings": queries, "queue_embeddings": queue}
    loss = cprd_loss(student, teacher, **options, max_valid=3, reduction="sum")
    ranks = teacher.argsort(dim=1, descending=True).argsort(dim=1)
    total, _ = loop(student, teacher, [[int(r) < 3 for r in row] for row in ranks], list((queries @ queue.T).detach()))
    assert loss.item() == pytest.approx(total, rel=1e-9)
    loss.backward()
    assert bool((queries.grad != 0).all())
    assert queue.grad is None


def test_easy_negatives_are_the_batchs_documents_that_nobody_scored_or_knows_to_be_relevant():
    batch = sample(4)
    batch["relevant"][0, ~batch["scored"][0]] = True  # nothing easy is left for the first query
    easy = [batch["batch_scores"][i][~(batch["scored"][i] | batch["relevant"][i])] for i in range(len(batch["scored"]))]
    assert len(easy[0]) == 0
    total, terms = 0.0, 0
    for i in range(len(easy)):
        keep = batch["mask"][i] & ~batch["positives"][i]
        student, teacher = batch["student_scores"][i : i + 1, keep], batch["teacher_scores"][i : i + 1, keep]
        row = loop(student, teacher, [[True] * int(keep.sum())], [easy[i]])
        total, terms = total + row[0], terms + row[1]
    assert call("cprd", batch, easy_negatives=True).item() == pytest.approx(total / terms, rel=1e-9)
    assert call("cprd", batch, easy_negatives=True) > call("cprd", batch)


def test_a_list_of_one_learns_once_easy_negatives_are_there():
    student, teacher = torch.tensor([[0.2]]), torch.tensor([[1.0]])
    assert cprd_loss(student, teacher).item() == 0
    one = torch.tensor([[0.2, 0.0]])
    pushed = cprd_loss(student, teacher, query_embeddings=one, queue_embeddings=torch.tensor([[1.0, 0.0]]))
    assert pushed.item() == pytest.approx(math.log(2), rel=1e-6)


def test_lists_of_one_do_not_water_down_the_mean():
    """Most documents of a batch stand in one list only: as reverse lists they rank nothing."""
    student, teacher = lists(9)
    alone = torch.zeros(3, 5, dtype=torch.bool)
    alone[:, 0] = True
    mask = torch.cat([torch.ones(3, 5, dtype=torch.bool), alone])
    both = cprd_loss(student.repeat(2, 1), teacher.repeat(2, 1), mask)
    torch.testing.assert_close(both, cprd_loss(student, teacher), rtol=1e-12, atol=0)


def test_the_reverse_margin_is_measured_from_the_query_a_document_belongs_to():
    similarity = torch.tensor([[0.1, 0.4], [0.5, 0.2], [0.3, 0.6]], dtype=torch.float64)
    teacher = torch.tensor([[5.0, 0.0], [4.0, 5.0], [-3.0, 1.0]], dtype=torch.float64)
    batch = {
        "batch_scores": similarity,
        "batch_teacher_scores": teacher,
        "scored": torch.ones(3, 2, dtype=torch.bool),
        "relevant": torch.tensor([[True, False], [False, True], [False, False]]),
    }
    nothing = torch.zeros(3, 2, dtype=torch.bool)
    loss = cprd_loss(similarity, teacher, nothing, **batch, directions="both", valid_margin=1.5, reduction="sum")
    # Document 0 (positive 5): query 1 at 4 is within 1.5, query 2 is not. Document 1 (positive 5): none is.
    expected = torch.logsumexp(torch.tensor([0.5, 0.3], dtype=torch.float64) / TEMPERATURE, 0) - 0.5 / TEMPERATURE
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_both_directions_add_the_lists_of_queries_that_documents_rank():
    batch = sample(5)
    listed = (batch["scored"] & ~batch["relevant"]).T
    assert int(listed.sum(1).max()) > 1, "some document must stand in two lists"
    forward = call("cprd", batch)
    backward = cprd_loss(batch["batch_scores"].T, batch["batch_teacher_scores"].T, listed)
    torch.testing.assert_close(call("cprd", batch, directions="both"), forward + backward, rtol=1e-12, atol=0)


@pytest.mark.parametrize("options", [{"easy_negatives": True}, {"directions": "both"}, {"valid_margin": 1.5}])
def test_options_have_gradients_that_finite_differences_confirm(options):
    batch = sample(6)

    def loss(scores: Tensor) -> Tensor:
        return call("cprd", completed(batch | {"batch_scores": scores}), **options)

    assert torch.autograd.gradcheck(loss, (batch["batch_scores"].clone().requires_grad_(),))


def test_options_see_only_the_teachers_order_too():
    batch = sample(7)
    options = {"easy_negatives": True, "directions": "both", "max_valid": 2}
    before = value_and_gradients("cprd", batch, **options)
    after = value_and_gradients(
        "cprd", completed(batch | {"teacher_scores": torch.expm1(batch["teacher_scores"])}), **options
    )
    assert torch.equal(before[0], after[0])
    assert all(torch.equal(gradient, after[1][tensor]) for tensor, gradient in before[1].items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"easy_negatives": True}, "need batch_scores"),
        ({"directions": "both"}, "need batch_scores"),
        ({"directions": "sideways"}, "unknown directions 'sideways'"),
        ({"valid_margin": 0.0}, "valid_margin must be a positive finite number, got 0"),
        ({"positive": torch.tensor([9, 0, 0])}, r"positive\[0\] is 9"),
        ({"queue_embeddings": torch.zeros(2, 4)}, "need query_embeddings"),
        ({"queue_embeddings": torch.zeros(2, 4), "query_embeddings": torch.zeros(1, 4)}, r"\(1, 4\)"),
        ({"queue_embeddings": torch.full((2, 4), math.nan), "query_embeddings": torch.zeros(3, 4)}, "8 NaN"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ObjectiveError, match=message):
        cprd_loss(*lists(8), **options)
