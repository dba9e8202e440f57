"""M3 distillation: every candidate in turn against what follows it and the batch.

Why: golden files have neither padding nor documents that are relevant outside the list; who is in whose denominator is
all there is to this loss.
"""

import math

import pytest
import torch
from ragged_lists import close, ragged, softmax

from pipelines.errors import ObjectiveError
from pipelines.objectives.info_nce import info_nce_loss
from pipelines.objectives.m3_kd import m3_kd_loss

COLUMNS = torch.tensor(
    [[3, 1, 4, 0, 5, 6], [7, 2, 3, 1, 0, 0], [8, 9, 1, 5, 7, 0], [0, 4, 8, 0, 0, 0], [5, 0, 0, 0, 0, 0]]
)


def m3_batch(seed=0):
    _, teacher, mask = ragged(seed)
    generator = torch.Generator().manual_seed(seed + 100)
    student = torch.rand(5, 10, generator=generator, dtype=torch.float64).requires_grad_()
    relevant = torch.zeros(5, 10, dtype=torch.bool)
    relevant[0, [1, 9]] = True  # column 1 is in its own list, column 9 is not
    relevant[2, [0, 2, 3]] = True
    return student, teacher, mask, relevant


def test_m3_kd_is_the_formula_on_ragged_lists_with_relevant_documents():
    student, teacher, mask, relevant = m3_batch()
    total = 0.0
    for i in range(5):
        own = COLUMNS[i][mask[i]].tolist()
        if len(own) < 2:
            continue
        logits = (student[i] / 0.2).tolist()
        weights = softmax([t / 1.5 for t in teacher[i][mask[i]].tolist()])
        for k, column in enumerate(own):
            rivals = [d for d in range(10) if d in own[k:] or (d not in own and not relevant[i, d])]
            total -= weights[k] * (logits[column] - math.log(sum(math.exp(logits[d]) for d in rivals)))
    loss = m3_kd_loss(
        student, teacher, mask, columns=COLUMNS, relevant=relevant, temperature=0.2, teacher_temperature=1.5
    )
    close(loss, total / 5)


def test_m3_kd_leaves_a_relevant_document_outside_the_list_alone():
    student, teacher, mask, relevant = m3_batch()
    m3_kd_loss(student, teacher, mask, columns=COLUMNS, relevant=relevant).backward()
    gradient = student.grad.clone()
    assert gradient[0, 9] == 0
    assert gradient[0, 1] != 0, "one of its own list is a target in its turn"
    student.grad = None
    m3_kd_loss(student, teacher, mask, columns=COLUMNS).backward()
    assert student.grad[0, 9] > 0


def test_m3_kd_is_info_nce_if_the_teacher_is_sure_of_the_first():
    generator = torch.Generator().manual_seed(3)
    queries, documents = torch.randn(4, 8, generator=generator), torch.randn(12, 8, generator=generator)
    columns = torch.arange(12).view(4, 3)
    teacher = torch.tensor([[1e4, 0.0, 0.0]]).expand(4, 3)
    torch.testing.assert_close(
        m3_kd_loss(queries @ documents.T, teacher, columns=columns),
        info_nce_loss(queries, documents, columns[:, 0]),
    )


def test_a_list_of_one_candidate_adds_nothing_to_m3_kd():
    student, teacher, mask, _ = m3_batch()
    m3_kd_loss(student, teacher, mask, columns=COLUMNS).backward()
    assert not bool(student.grad[4].any())
    assert bool((student.grad[:4] != 0).any(dim=1).all())


def test_the_last_candidate_adds_nothing_to_m3_kd_if_the_batch_is_one_list():
    """No other document, so the last in turn has only itself to beat."""
    student = torch.tensor([[0.3, 0.9]], dtype=torch.float64, requires_grad=True)
    sure_of_the_last = torch.tensor([[-1e4, 0.0]], dtype=torch.float64)
    loss = m3_kd_loss(student, sure_of_the_last, columns=torch.tensor([[0, 1]]))
    loss.backward()
    assert loss.item() == 0
    assert not bool(student.grad.any())


def test_m3_kd_ignores_whatever_stands_in_the_columns_of_padding():
    student, teacher, mask, _ = m3_batch()
    odd = COLUMNS.masked_fill(~mask, -7)
    assert torch.equal(
        m3_kd_loss(student, teacher, mask, columns=odd), m3_kd_loss(student, teacher, mask, columns=COLUMNS)
    )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([[0, 1], [2, 2]], "the list of row 1 names one document twice"),
        ([[0, 1], [2, 4]], r"columns\[1, 1\] is 4, outside the 4 documents"),
        ([[0, -1], [2, 3]], r"columns\[0, 1\] is -1"),
        ([[0, 1, 2]], r"columns must be int64 of shape \(2, 2\)"),
        ([[0.0, 1.0], [2.0, 3.0]], "columns must be int64"),
    ],
)
def test_m3_kd_refuses_columns_that_would_give_a_wrong_loss(columns, message):
    with pytest.raises(ObjectiveError, match=rf"^m3_kd: .*{message}"):
        m3_kd_loss(torch.zeros(2, 4), torch.zeros(2, 2), columns=torch.tensor(columns))


@pytest.mark.parametrize(
    ("scores", "teacher", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(2, 2), "one row per query"),
        (torch.zeros(4), torch.zeros(2, 2), "batch_scores must be a floating"),
        (torch.zeros(2, 4), torch.zeros(2, 2).long(), "teacher_scores must be a floating"),
        (torch.zeros(2, 4), torch.zeros(2, 1), "a list of 1 candidate"),
    ],
)
def test_m3_kd_refuses_scores_of_the_wrong_shape(scores, teacher, message):
    columns = torch.arange(teacher.numel()).view(teacher.shape)
    with pytest.raises(ObjectiveError, match=rf"^m3_kd: .*{message}"):
        m3_kd_loss(scores, teacher, columns=columns)
