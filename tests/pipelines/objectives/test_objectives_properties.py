"""What must hold for every input, not only for golden ones.

Why: golden files fix the formula at a few points; these fix its symmetries (who may influence what)
everywhere, which is what batching, padding and shuffling in a training loop rely on.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.objectives.cprd import cprd_loss
from pipelines.objectives.info_nce import info_nce_loss
from pipelines.objectives.list_kl import list_kl_loss
from pipelines.objectives.margin_mse import margin_mse_loss

settings.register_profile("objectives", max_examples=40, deadline=None)
settings.load_profile("objectives")

seeds = st.integers(0, 2**31 - 1)
sizes = st.tuples(st.integers(1, 5), st.integers(2, 9))

LISTWISE = {
    "cprd": lambda s, t, m: cprd_loss(s, t, m, reduction="sum"),
    "cprd prefix": lambda s, t, m: cprd_loss(s, t, m, reduction="sum", max_valid=2),
    "cprd threshold": lambda s, t, m: cprd_loss(s, t, m, reduction="sum", valid_threshold=0.5),
    "list_kl forward": list_kl_loss,
    "list_kl reverse": lambda s, t, m: list_kl_loss(s, t, m, direction="reverse"),
    "list_kl standardised": lambda s, t, m: list_kl_loss(s, t, m, standardise_teacher=True),
}
every_listwise = pytest.mark.parametrize("loss", LISTWISE.values(), ids=LISTWISE.keys())


def scores(seed: int, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine-like student, tied integer teacher, and a mask that leaves at least two candidates a row."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.rand(size, generator=generator, dtype=torch.float64) * 2 - 1
    teacher = torch.randint(-20, 21, size, generator=generator).double()
    mask = torch.rand(size, generator=generator) < 0.7
    mask[:, :2] = True
    return student, teacher, mask


def value_and_gradient(function, student: Tensor) -> tuple[Tensor, Tensor]:
    student = student.clone().requires_grad_()
    loss = function(student)
    loss.backward()
    return loss.detach(), student.grad


@given(seeds, sizes, st.lists(st.floats(0.01, 50), min_size=41, max_size=41), st.sampled_from([None, 1, 3]))
def test_cprd_sees_only_the_teachers_order(seed, size, steps, max_valid):
    """Any increasing map of teacher scores: bitwise the same loss and gradient. This is what CPRD is for."""
    student, teacher, mask = scores(seed, size)
    increasing = torch.tensor(steps, dtype=torch.float64).cumsum(0)
    transformed = increasing[(teacher + 20).long()]
    before = value_and_gradient(lambda s: cprd_loss(s, teacher, mask, max_valid=max_valid), student)
    after = value_and_gradient(lambda s: cprd_loss(s, transformed, mask, max_valid=max_valid), student)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


def test_cprd_threshold_is_not_order_only():
    """The exception that the docstring states: a threshold reads the teacher's scale."""
    student, teacher = torch.tensor([[0.1, 0.4, 0.2]]), torch.tensor([[-1.0, 2.0, -3.0]])
    low, high = (cprd_loss(student, teacher + shift, valid_threshold=0.5) for shift in (0.0, 5.0))
    assert not torch.equal(low, high)


@every_listwise
@given(seed=seeds, size=sizes)
def test_padding_has_no_influence_and_gets_no_gradient(loss, seed, size):
    student, teacher, mask = scores(seed, size)
    clean = value_and_gradient(lambda s: loss(s, teacher, mask), student)
    nonsense = torch.full_like(student, float("nan"))
    dirty = value_and_gradient(
        lambda s: loss(s, torch.where(mask, teacher, nonsense), mask), torch.where(mask, student, nonsense)
    )
    assert torch.equal(clean[0], dirty[0])
    assert torch.equal(clean[1], dirty[1])
    assert bool((dirty[1][~mask] == 0).all())


@every_listwise
@given(seed=seeds, size=sizes)
def test_columns_may_come_in_any_order(loss, seed, size):
    """Candidates arrive in mined order: where the teacher has no ties, that order must not matter."""
    student, teacher, mask = scores(seed, size)
    generator = torch.Generator().manual_seed(seed)
    teacher = teacher + torch.rand(size, generator=generator, dtype=torch.float64) * 0.5
    shuffle = torch.randperm(size[1], generator=generator)
    straight = value_and_gradient(lambda s: loss(s, teacher, mask), student)
    mixed = value_and_gradient(lambda s: loss(s, teacher[:, shuffle], mask[:, shuffle]), student[:, shuffle])
    torch.testing.assert_close(mixed[0], straight[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mixed[1], straight[1][:, shuffle], rtol=1e-10, atol=1e-12)


@every_listwise
@given(seed=seeds, size=sizes)
def test_each_rows_gradient_sums_to_zero_and_a_shift_changes_nothing(loss, seed, size):
    """Softmax losses must not teach the student an offset per query."""
    student, teacher, mask = scores(seed, size)
    value, gradient = value_and_gradient(lambda s: loss(s, teacher, mask), student)
    torch.testing.assert_close(gradient.sum(dim=1), torch.zeros(size[0], dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(loss(student + 0.7, teacher, mask), value, rtol=1e-9, atol=1e-9)


@every_listwise
@given(seed=seeds, size=sizes)
def test_a_batch_is_the_sum_of_its_queries(loss, seed, size):
    """No query may leak into another's list; list_kl divides by the number of queries."""
    student, teacher, mask = scores(seed, size)
    rows = [loss(student[i : i + 1], teacher[i : i + 1], mask[i : i + 1]) for i in range(size[0])]
    whole = loss(student, teacher, mask)
    sums = torch.stack(rows).sum()
    assert torch.isclose(whole, sums) or torch.isclose(whole, sums / size[0])


@every_listwise
def test_gradients_agree_with_finite_differences(loss):
    student, teacher, mask = scores(3, (3, 5))
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, mask), (student.requires_grad_(),))


@given(seeds, sizes)
def test_cprd_leaves_positives_out_of_the_list(seed, size):
    """A judged positive must not be ranked, and must not be pushed down as somebody's negative."""
    student, teacher, mask = scores(seed, size)
    positives = torch.zeros(size, dtype=torch.bool)
    positives[:, 0] = True
    with_flags = value_and_gradient(lambda s: cprd_loss(s, teacher, mask, positives=positives), student)
    cut = value_and_gradient(lambda s: cprd_loss(s, teacher[:, 1:], mask[:, 1:]), student[:, 1:])
    torch.testing.assert_close(with_flags[0], cut[0])
    torch.testing.assert_close(with_flags[1][:, 1:], cut[1])
    assert bool((with_flags[1][:, 0] == 0).all())


@given(seeds, sizes)
def test_the_minimum_of_list_kl_is_the_teacher(seed, size):
    _, teacher, mask = scores(seed, size)
    for direction in ("forward", "reverse"):
        value, gradient = value_and_gradient(
            lambda s, d=direction: list_kl_loss(s, teacher, mask, temperature=1.0, direction=d), teacher
        )
        assert abs(float(value)) < 1e-12
        assert float(gradient.abs().max()) < 1e-12


@given(seeds, sizes, st.floats(0.1, 10), st.floats(-5, 5))
def test_standardising_forgets_the_teachers_scale(seed, size, factor, shift):
    student, teacher, mask = scores(seed, size)
    plain = list_kl_loss(student, teacher, mask, standardise_teacher=True)
    moved = list_kl_loss(student, teacher * factor + shift, mask, standardise_teacher=True)
    torch.testing.assert_close(moved, plain, rtol=1e-7, atol=1e-7)


@given(seeds, sizes)
def test_margin_mse_ignores_masked_columns_rows_without_positive_and_column_order(seed, size):
    student, teacher, mask = scores(seed, size)
    positive = torch.zeros(size[0], dtype=torch.int64)
    positive[0] = -1
    loss, gradient = value_and_gradient(
        lambda s: margin_mse_loss(s, teacher, mask, positive=positive, scale=3.0), student
    )
    negatives = mask.clone()
    negatives[:, 0], negatives[0] = False, False
    margins = 3 * (student[:, :1] - student) - (teacher[:, :1] - teacher)
    expected = (margins**2)[negatives].mean() if bool(negatives.any()) else torch.tensor(0.0).double()
    torch.testing.assert_close(loss, expected)
    assert bool((gradient[0] == 0).all())
    assert bool((gradient[~mask] == 0).all())
    flipped = margin_mse_loss(
        student.flip(1),
        teacher.flip(1),
        mask.flip(1),
        positive=torch.where(positive >= 0, size[1] - 1 - positive, -1),
        scale=3.0,
    )
    torch.testing.assert_close(flipped, loss)


@given(seeds, st.integers(1, 5), st.integers(2, 9))
def test_info_nce_is_cross_entropy_over_the_documents_that_are_left(seed, queries, documents):
    """Against a plain loop: skipped queries, other relevant documents and document order."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(queries, 4, generator=generator, dtype=torch.float64)
    d = torch.randn(documents, 4, generator=generator, dtype=torch.float64)
    positive = torch.randint(-1, documents, (queries,), generator=generator)
    relevant = torch.rand(queries, documents, generator=generator) < 0.3
    relevant[positive >= 0, positive[positive >= 0]] = True

    terms = []
    for i in range(queries):
        if positive[i] >= 0:
            left = ~relevant[i]
            left[positive[i]] = True
            logits = d @ q[i] / 0.1
            terms.append(logits[left].logsumexp(0) - logits[positive[i]])
    expected = torch.stack(terms).mean() if terms else torch.tensor(0.0).double()
    actual = info_nce_loss(q, d, positive, relevant=relevant, temperature=0.1)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)

    order = torch.randperm(documents, generator=generator)
    moved = torch.where(positive >= 0, order.argsort()[positive.clamp(min=0)], -1)
    shuffled = info_nce_loss(q, d[order], moved, relevant=relevant[:, order], temperature=0.1)
    torch.testing.assert_close(shuffled, actual, rtol=1e-9, atol=1e-9)
