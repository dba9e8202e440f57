"""Inputs at the edge: nothing to learn from, huge logits, half precision, and what must be refused.

Why: these occur in every long run (a query without valid negatives, a saturated teacher, one NaN), and the
usual answer, a NaN loss or a silently skipped batch, is found hours later.
"""

import math

import pytest
import torch

from pipelines.errors import ObjectiveError
from pipelines.objectives.cprd import cprd_loss
from pipelines.objectives.info_nce import info_nce_loss
from pipelines.objectives.list_kl import list_kl_loss
from pipelines.objectives.margin_mse import margin_mse_loss

FIRST = torch.zeros(2, dtype=torch.int64)
SCORE_LOSSES = {
    "cprd": cprd_loss,
    "list_kl": list_kl_loss,
    "list_kl reverse": lambda s, t, m=None: list_kl_loss(s, t, m, direction="reverse"),
    "list_kl standardised": lambda s, t, m=None: list_kl_loss(s, t, m, standardise_teacher=True),
    "margin_mse": lambda s, t, m=None: margin_mse_loss(s, t, m, positive=FIRST),
}
every_loss = pytest.mark.parametrize("loss", SCORE_LOSSES.values(), ids=SCORE_LOSSES.keys())


def _scores(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    student = torch.rand(2, 6, generator=generator).to(dtype)
    return student.requires_grad_(), (torch.randn(2, 6, generator=generator) * 4).to(dtype)


@pytest.mark.parametrize(
    "nothing",
    [
        lambda s, t: cprd_loss(s, t, valid=torch.zeros_like(s, dtype=torch.bool)),
        lambda s, t: cprd_loss(s, t, valid_threshold=1.0),
        lambda s, t: cprd_loss(s, t, positives=torch.ones_like(s, dtype=torch.bool)),
        lambda s, t: cprd_loss(s, t, torch.zeros_like(s, dtype=torch.bool)),
        lambda s, t: list_kl_loss(s, t, torch.zeros_like(s, dtype=torch.bool)),
        lambda s, t: list_kl_loss(s, t, torch.zeros_like(s, dtype=torch.bool), standardise_teacher=True),
        lambda s, t: margin_mse_loss(s, t, positive=torch.full((2,), -1)),
        lambda s, t: info_nce_loss(s, t, torch.full((2,), -1)),
        lambda s, t: info_nce_loss(s, t, torch.full((2,), -1), relevant=torch.ones(2, 2, dtype=torch.bool)),
    ],
)
def test_nothing_to_learn_from_is_exactly_zero_with_zero_gradient(nothing):
    """Zero and not NaN, and still attached, so that a sum of terms can go backward."""
    student, teacher = _scores()
    loss = nothing(student, teacher)
    loss.backward()
    assert loss.item() == 0
    assert bool((student.grad == 0).all())


@every_loss
def test_a_row_with_a_single_candidate_adds_nothing(loss):
    student, teacher = _scores()
    mask = torch.ones_like(student, dtype=torch.bool)
    mask[1, 1:] = False
    loss(student, teacher, mask).backward()
    assert bool((student.grad[1] == 0).all())
    assert bool((student.grad[0] != 0).any())


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_extreme_logits_stay_finite(loss, dtype):
    """+-1e4 divided by a temperature of .05 is 2e5, far beyond what exp can take."""
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [1e4, 1e4, -1e4]], dtype=dtype)
    value = loss(student, teacher)
    value.backward()
    assert bool(torch.isfinite(value))
    assert bool(torch.isfinite(student.grad).all())


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    """The loss of bf16 scores must be the float32 loss of those same numbers, not a bf16 softmax."""
    student, teacher = _scores(dtype)
    half = loss(student, teacher)
    full = loss(student.detach().float(), teacher.float())
    assert half.dtype == torch.float32
    assert torch.equal(half, full)


def test_info_nce_ignores_autocast():
    """Autocast would redo the product in bf16: logits near 20 would then be off by .06."""
    generator = torch.Generator().manual_seed(1)
    queries, documents = (
        torch.nn.functional.normalize(torch.randn(8, 32, generator=generator), dim=1) for _ in range(2)
    )
    plain = info_nce_loss(queries, documents, torch.arange(8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = info_nce_loss(queries, documents, torch.arange(8))
    assert torch.equal(plain, inside)


def test_cprd_keeps_a_float64_teachers_order_beside_a_float32_student():
    """In the student's dtype 1 and 1 + 1e-12 would tie and fall back to column order."""
    student = torch.tensor([[0.2, 0.9]])
    close = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)
    apart = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    assert torch.equal(cprd_loss(student, close), cprd_loss(student, apart))


def test_cprd_breaks_teacher_ties_by_column():
    """Wide enough that an unstable sort really reorders ties."""
    student = torch.rand(1, 5000, generator=torch.Generator().manual_seed(2))
    tied = cprd_loss(student, torch.zeros(1, 5000))
    assert torch.equal(tied, cprd_loss(student, -torch.arange(5000.0).unsqueeze(0)))


@pytest.mark.parametrize("value", [0.1, 0.0, -1e4])
def test_standardising_a_tied_list_gives_a_uniform_teacher(value):
    """The mean of tied scores is off by rounding and their deviation is 0 or noise: neither may invent an order."""
    student = torch.zeros(1, 7, requires_grad=True)
    loss = list_kl_loss(student, torch.full((1, 7), value), standardise_teacher=True)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert float(student.grad.abs().max()) < 1e-6


@every_loss
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1], ids=["student_scores", "teacher_scores"])
def test_nan_and_infinity_are_refused_with_their_place(loss, value, side):
    pair = [scores.detach().clone() for scores in _scores()]
    pair[side][1, 4] = value
    with pytest.raises(ObjectiveError, match=rf"{('student', 'teacher')[side]}_scores has 1 .*\(1, 4\)"):
        loss(*pair)


@pytest.mark.parametrize("side", [0, 1])
def test_info_nce_refuses_nan(side):
    pair = [torch.ones(3, 4), torch.ones(3, 4)]
    pair[side][2, 1] = math.nan
    with pytest.raises(ObjectiveError, match=r"\(2, 1\)"):
        info_nce_loss(*pair, torch.zeros(3, dtype=torch.int64))


SQUARE = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cprd_loss(SQUARE, torch.zeros(2, 4)), "one shape"),
        (lambda: cprd_loss(torch.zeros(3), torch.zeros(3)), "queries, candidates"),
        (lambda: cprd_loss(SQUARE, SQUARE.long()), "floating"),
        (lambda: cprd_loss(SQUARE, SQUARE, SQUARE), "mask must be bool"),
        (lambda: cprd_loss(SQUARE, SQUARE, positives=SQUARE[:1].bool()), "positives must be bool"),
        (lambda: cprd_loss(SQUARE, SQUARE, valid=SQUARE.long()), "valid must be bool"),
        (lambda: cprd_loss(SQUARE, SQUARE, temperature=0), "temperature"),
        (lambda: cprd_loss(SQUARE, SQUARE, max_valid=0), "max_valid"),
        (lambda: cprd_loss(SQUARE, SQUARE, valid_threshold=1.5), "probability"),
        (lambda: cprd_loss(SQUARE, SQUARE, reduction="mean"), "unknown reduction 'mean'"),
        (lambda: list_kl_loss(SQUARE[:, :1], SQUARE[:, :1]), "list of 1"),
        (lambda: list_kl_loss(SQUARE, SQUARE, teacher_temperature=math.nan), "teacher_temperature"),
        (lambda: list_kl_loss(SQUARE, SQUARE, direction="sideways"), "unknown direction"),
        (lambda: margin_mse_loss(SQUARE[:, :1], SQUARE[:, :1], positive=FIRST), "list of 1"),
        (lambda: margin_mse_loss(SQUARE, SQUARE, positive=FIRST + 3), r"positive\[0\] is 3"),
        (lambda: margin_mse_loss(SQUARE, SQUARE, positive=FIRST - 2), r"positive\[0\] is -2"),
        (lambda: margin_mse_loss(SQUARE, SQUARE, positive=FIRST.int()), "int64"),
        (lambda: margin_mse_loss(SQUARE, SQUARE, SQUARE.bool(), positive=FIRST), "masked column"),
        (lambda: margin_mse_loss(SQUARE, SQUARE, positive=FIRST, scale=-1), "scale"),
        (lambda: info_nce_loss(SQUARE, SQUARE[:1], FIRST), "fewer than 2 documents"),
        (lambda: info_nce_loss(SQUARE, torch.zeros(2, 4), FIRST), "dimensions"),
        (lambda: info_nce_loss(SQUARE.long(), SQUARE, FIRST), "floating"),
        (lambda: info_nce_loss(SQUARE, SQUARE, FIRST + 2), r"positive_document\[0\] is 2"),
        (lambda: info_nce_loss(SQUARE, SQUARE, FIRST, relevant=torch.ones(2, 3, dtype=torch.bool)), "relevant must be"),
    ],
)
def test_inputs_that_would_give_a_wrong_loss_are_refused(call, message):
    with pytest.raises(ObjectiveError, match=message):
        call()
