"""What is particular to each objective that matches the teacher's values: its formula in plain Python, edges, refusals.

Why: golden files have neither padding nor queries without a positive, and every batch of a job has both. So each loss
is also held to a loop that was written from the paper's formula, on ragged lists; what a method claims about itself
(symmetric, insensitive to scale, linear in memory) is tested as a claim.
"""

import math

import pytest
import torch
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objectives.ar2 import ar2_code_compat_loss, ar2_loss
from pipelines.objectives.binary_kl import binary_kl_loss, binary_kl_norm_loss
from pipelines.objectives.info_nce import info_nce_loss
from pipelines.objectives.list_kl import list_kl_loss
from pipelines.objectives.list_net import list_net_loss
from pipelines.objectives.m3_kd import m3_kd_loss
from pipelines.objectives.margin_mse import margin_mse_loss
from pipelines.objectives.ranker_loss import ranker_loss
from pipelines.objectives.rocketqa_v2 import rocketqa_v2_loss
from pipelines.objectives.z_loss import z_loss

POSITIVE = torch.tensor([1, 0, -1, 2, 0])
"""Of the five ragged lists: the third query has none, the fourth list holds its positive in the last real column."""
LENGTHS = (6, 4, 5, 3, 1)
LISTS = {
    "list_kl": list_kl_loss,
    "list_net": list_net_loss,
    "list_net with epsilon": lambda s, t, m=None: list_net_loss(s, t, m, epsilon=1e-6),
    "binary_kl": binary_kl_loss,
    "binary_kl_norm": binary_kl_norm_loss,
    "margin_mse": lambda s, t, m=None: margin_mse_loss(s, t, m, positive=POSITIVE),
    "rocketqa_v2": lambda s, t, m=None: rocketqa_v2_loss(s, t, m, positive=POSITIVE),
    "rocketqa_v2 code": lambda s, t, m=None: rocketqa_v2_loss(s, t, m, positive=POSITIVE, form="code"),
    "ar2": lambda s, t, m=None: ar2_loss(s, t, m, positive=POSITIVE),
    "ar2_code_compat": lambda s, t, m=None: ar2_code_compat_loss(s, t, m, positive=POSITIVE),
    "z_loss": lambda s, t, m=None: z_loss(s, m, positive=POSITIVE),
    "ranker_loss": lambda s, t, m=None: ranker_loss(s, POSITIVE, m),
}
POSITIVE_NEEDED = {
    "margin_mse": lambda s, p, m=None: margin_mse_loss(s, s, m, positive=p),
    "rocketqa_v2": lambda s, p, m=None: rocketqa_v2_loss(s, s, m, positive=p),
    "ar2": lambda s, p, m=None: ar2_loss(s, s, m, positive=p),
    "ar2_code_compat": lambda s, p, m=None: ar2_code_compat_loss(s, s, m, positive=p),
    "z_loss": lambda s, p, m=None: z_loss(s, m, positive=p),
    "ranker_loss": lambda s, p, m=None: ranker_loss(s, p, m),
}


def ragged(seed=0, dtype=torch.float64):
    """Student (a leaf), teacher and mask of five lists of six columns."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.rand(5, 6, generator=generator, dtype=dtype).requires_grad_()
    teacher = torch.randn(5, 6, generator=generator, dtype=dtype) * 3
    mask = torch.arange(6) < torch.tensor(LENGTHS).unsqueeze(1)
    return student, teacher, mask


def rows(student, teacher, mask):
    """Python lists of the real candidates of each query."""
    return [
        (s[m].tolist(), t[m].tolist(), int(p))
        for s, t, m, p in zip(student.detach(), teacher, mask, POSITIVE, strict=True)
    ]


def softmax(values):
    highest = max(values)
    weights = [math.exp(v - highest) for v in values]
    return [w / sum(weights) for w in weights]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def coin(p, q):
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def close(loss, expected):
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("loss", LISTS.values(), ids=LISTS.keys())
def test_a_batch_without_padding_and_the_same_batch_with_it_agree(loss):
    """Batches without padding skip all masking, so both ways must give one result."""
    student, teacher, _ = ragged(1)
    wide = [torch.cat([scores.detach(), torch.full((5, 2), math.nan)], dim=1) for scores in (student, teacher)]
    padded = wide[0].requires_grad_()
    mask = torch.arange(8).expand(5, 8) < 6
    narrow = loss(student, teacher)
    broad = loss(padded, wide[1], mask)
    narrow.backward()
    broad.backward()
    torch.testing.assert_close(broad, narrow, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(padded.grad[:, :6], student.grad, rtol=1e-10, atol=1e-14)
    assert not bool(padded.grad[:, 6:].any())
    assert torch.equal(loss(student, teacher, torch.ones(5, 6, dtype=torch.bool)), narrow)


@pytest.mark.parametrize("loss", LISTS.values(), ids=LISTS.keys())
def test_an_empty_batch_is_zero(loss, monkeypatch):
    monkeypatch.setattr(f"{__name__}.POSITIVE", torch.empty(0, dtype=torch.int64))
    student = torch.empty(0, 4, requires_grad=True)
    value = loss(student, torch.empty(0, 4))
    value.backward()
    assert value.item() == 0


@pytest.mark.parametrize("loss", POSITIVE_NEEDED.values(), ids=POSITIVE_NEEDED.keys())
def test_a_positive_that_is_padding_or_outside_the_list_is_refused(loss):
    scores = torch.zeros(2, 3)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    with pytest.raises(ObjectiveError, match="the positive of row 1 is a masked column"):
        loss(scores, torch.tensor([2, 2]), mask)
    with pytest.raises(ObjectiveError, match=r"positive\[0\] is 3, outside the 3 columns"):
        loss(scores, torch.tensor([3, -1]), mask)


def test_list_net_is_list_kl_plus_the_teachers_entropy():
    student, teacher, mask = ragged()
    settings = {"temperature": 0.3, "teacher_temperature": 2.0}
    cross_entropy = list_net_loss(student, teacher, mask, **settings)
    (gradient,) = torch.autograd.grad(cross_entropy, student)
    divergence = list_kl_loss(student, teacher, mask, **settings)
    (same,) = torch.autograd.grad(divergence, student)
    entropies = [-sum(p * math.log(p) for p in softmax([t / 2 for t in ts])) for _, ts, _ in rows(*ragged())]
    close(cross_entropy - divergence, sum(entropies) / 5)
    torch.testing.assert_close(gradient, same, rtol=1e-9, atol=1e-12)


def test_list_net_epsilon_cuts_the_gradient_of_candidates_less_probable_than_it():
    student = torch.tensor([[0.0, 50.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[3.0, 0.0]], dtype=torch.float64)
    for epsilon, pull in ((0.0, sigmoid(3)), (1e-10, 0.0)):
        (gradient,) = torch.autograd.grad(list_net_loss(student, teacher, temperature=1, epsilon=epsilon), student)
        assert -gradient[0, 0].item() == pytest.approx(pull, abs=1e-9)


@pytest.mark.parametrize("epsilon", [-1e-9, 1.0, math.nan])
def test_list_net_refuses_an_impossible_epsilon(epsilon):
    with pytest.raises(ObjectiveError, match="list_net: epsilon"):
        list_net_loss(torch.zeros(1, 2), torch.zeros(1, 2), epsilon=epsilon)


def test_binary_kl_and_its_norm_are_their_formulas():
    student, teacher, mask = ragged()
    settings = {"temperature": 0.5, "teacher_temperature": 3.0}
    plain = norm = 0.0
    for ss, ts, _ in rows(student, teacher, mask):
        if len(ss) > 1:
            plain += sum(coin(sigmoid(t / 3), sigmoid(s / 0.5)) for s, t in zip(ss, ts, strict=True))
            norm += sum(coin(0.5, sigmoid(s / 0.5 - t / 3)) for s, t in zip(ss, ts, strict=True))
    close(binary_kl_loss(student, teacher, mask, **settings), plain / 5)
    close(binary_kl_norm_loss(student, teacher, mask, **settings), norm / 5)
    scaled = binary_kl_norm_loss(student, teacher, mask, scale_by_temperature_squared=True, **settings)
    close(scaled, norm / 5 * 0.5**2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_logits_cost_binary_kl_nothing_and_get_no_gradient(dtype):
    teacher = torch.tensor([[7.0, -3.0, 0.1, 40.0]], dtype=dtype)
    for loss in (binary_kl_loss, binary_kl_norm_loss):
        student = (teacher * 0.25).requires_grad_()
        value = loss(student, teacher, temperature=0.25)
        value.backward()
        assert value.item() == 0
        assert float(student.grad.abs().max()) < 1e-7


def test_binary_kl_norm_is_symmetric_in_the_difference():
    student, teacher = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    there = binary_kl_norm_loss(student, teacher, temperature=1)
    torch.testing.assert_close(binary_kl_norm_loss(teacher, student, temperature=1), there, rtol=1e-12, atol=0)
    back = binary_kl_loss(teacher, student, temperature=1)
    assert not torch.isclose(binary_kl_loss(student, teacher, temperature=1), back)


def test_only_binary_kl_norm_still_pulls_where_the_teacher_saturates():
    """Logits 12 and 30 are the same probability in all digits that matter, yet differ as scores."""
    for loss, pull in ((binary_kl_loss, 0.0), (binary_kl_norm_loss, 0.5)):
        student = torch.full((1, 2), 12.0, requires_grad=True)
        loss(student, torch.full((1, 2), 30.0), temperature=1).backward()
        assert -student.grad[0, 0].item() == pytest.approx(pull, abs=1e-4)


@pytest.mark.parametrize("loss", [binary_kl_loss, binary_kl_norm_loss])
def test_beyond_binary_kls_clamp_the_student_gets_no_gradient(loss):
    teacher = torch.tensor([[0.0, 0.0]])
    for clamp, moved in ((None, True), (1e-8, True), (0.01, False)):
        student = torch.tensor([[9.0, -9.0]], requires_grad=True)
        loss(student, teacher, temperature=1, probability_clamp=clamp).backward()
        assert bool((student.grad != 0).all()) is moved


@pytest.mark.parametrize("clamp", [0.0, 0.5, -1e-8, math.nan])
def test_binary_kl_refuses_an_impossible_clamp(clamp):
    with pytest.raises(ObjectiveError, match="binary_kl: probability_clamp"):
        binary_kl_loss(torch.zeros(1, 2), torch.zeros(1, 2), probability_clamp=clamp)


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


@pytest.mark.parametrize(("form", "direction"), [("paper", "reverse"), ("code", "forward")])
def test_rocketqa_v2_with_stored_scores_moves_the_student_as_list_kl_does(form, direction):
    student, teacher, mask = ragged()
    settings = {"temperature": 0.2, "teacher_temperature": 2.0}
    loss = rocketqa_v2_loss(student, teacher, mask, positive=POSITIVE, form=form, **settings)
    (gradient,) = torch.autograd.grad(loss, student)
    (same,) = torch.autograd.grad(list_kl_loss(student, teacher, mask, direction=direction, **settings), student)
    per_cell = 1.0 if form == "paper" else 5 / sum(LENGTHS)
    torch.testing.assert_close(gradient, same * per_cell, rtol=1e-9, atol=1e-12)


def test_a_query_without_a_positive_adds_its_divergence_to_rocketqa_v2_and_no_cross_entropy():
    student, teacher, mask = ragged()
    learning = teacher.requires_grad_()
    divergence = list_kl_loss(student, teacher, mask, direction="reverse", temperature=0.2)
    loss = rocketqa_v2_loss(student, learning, mask, positive=POSITIVE, temperature=0.2)
    expected = [-math.log(softmax(ts)[p]) for _, ts, p in rows(student, teacher.detach(), mask) if p >= 0]
    close(loss - divergence, sum(expected) / 4)
    loss.backward()
    assert bool(learning.grad[2].any()), "the divergence still teaches the ranker"


def test_the_divergence_of_rocketqa_v2s_code_gives_the_ranker_no_gradient():
    student, teacher, mask = ragged()
    teacher.requires_grad_()
    none = torch.full((5,), -1)
    rocketqa_v2_loss(student, teacher, mask, positive=none, form="code").backward()
    assert not bool(teacher.grad.any())
    assert bool(student.grad.any())


def test_rocketqa_v2_refuses_an_unknown_form():
    with pytest.raises(ObjectiveError, match="unknown form 'paddle'"):
        rocketqa_v2_loss(torch.zeros(5, 2), torch.zeros(5, 2), positive=POSITIVE.clamp(max=1), form="paddle")


def test_ar2_has_the_papers_value_and_gradient():
    student, teacher, mask = ragged()
    loss = ar2_loss(student, teacher, mask, positive=POSITIVE, temperature=0.2, teacher_temperature=2.0)
    loss.backward()
    total, expected = 0.0, torch.zeros_like(student)
    for i, (ss, ts, p) in enumerate(rows(student, teacher, mask)):
        negatives = [m for m in range(len(ss)) if m != p]
        if p < 0 or not negatives:
            continue
        share = softmax([ss[m] / 0.2 for m in negatives])
        reward = [math.log(sigmoid((ts[p] - ts[m]) / 2)) for m in negatives]
        value = sum(q * r for q, r in zip(share, reward, strict=True))
        total += value
        for m, q, r in zip(negatives, share, reward, strict=True):
            expected[i, m] = q * (r - value) / 0.2 / 4
    close(loss, total / 4)
    torch.testing.assert_close(student.grad, expected, rtol=1e-9, atol=1e-12)


def test_ar2_raises_the_negatives_that_confuse_the_ranker_most():
    student = torch.zeros(1, 4, requires_grad=True)
    teacher = torch.tensor([[5.0, 6.0, 0.0, -5.0]])
    ar2_loss(student, teacher, positive=torch.tensor([0])).backward()
    assert student.grad[0, 0] == 0
    assert student.grad[0, 1] < 0 < student.grad[0, 2] < student.grad[0, 3]


def test_a_list_that_is_all_positive_adds_nothing_to_ar2():
    student = torch.rand(2, 3, requires_grad=True)
    mask = torch.tensor([[True, False, False], [True, True, True]])
    both = ar2_loss(student, student.detach() * 4, mask, positive=torch.tensor([0, 1]))
    second = ar2_loss(student[1:], student.detach()[1:] * 4, positive=torch.tensor([1]))
    both.backward()
    assert both.item() == pytest.approx(second.item() / 2)
    assert not bool(student.grad[0].any())


@pytest.mark.parametrize("epsilon", [1e-7, 0.0])
def test_ar2_code_compat_is_its_formula_on_ragged_lists(epsilon):
    """A query without a positive keeps its regulariser; the divisors differ, as in the code."""
    student, teacher, mask = ragged()
    loss = ar2_code_compat_loss(
        student,
        teacher,
        mask,
        positive=POSITIVE,
        temperature=0.4,
        teacher_temperature=2.0,
        adversarial_weight=0.3,
        epsilon=epsilon,
    )
    adversarial = imitation = 0.0
    for ss, ts, p in rows(student, teacher, mask):
        if len(ss) < 2:
            continue
        logs = [math.log(q + epsilon) for q in softmax([s / 0.4 for s in ss])]
        imitation -= sum(r * log for r, log in zip(softmax([t / 2 for t in ts]), logs, strict=True))
        if p >= 0:
            rewards = [math.log(sigmoid(ts[p] - t) + epsilon) for t in ts]
            adversarial += sum(r * log for r, log in zip(rewards, logs, strict=True))
    close(loss, 0.3 * adversarial + 0.7 * imitation / 5)


@pytest.mark.parametrize("epsilon", [1e-7, 0.0])
def test_ar2_code_compat_survives_extreme_scores(epsilon):
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0]])
    loss = ar2_code_compat_loss(student, teacher, positive=torch.tensor([0]), epsilon=epsilon)
    loss.backward()
    assert math.isfinite(loss.item())
    assert bool(torch.isfinite(student.grad).all())


@pytest.mark.parametrize(
    "wrong", [{"adversarial_weight": 1.5}, {"adversarial_weight": math.nan}, {"epsilon": -1e-7}, {"epsilon": 1.0}]
)
def test_ar2_code_compat_refuses_impossible_parameters(wrong):
    (name,) = wrong
    with pytest.raises(ObjectiveError, match=f"ar2_code_compat: {name}"):
        ar2_code_compat_loss(torch.zeros(1, 2), torch.zeros(1, 2), positive=torch.tensor([0]), **wrong)


def test_ranker_loss_is_cross_entropy_over_the_real_candidates():
    scores, _, mask = ragged()
    kept = POSITIVE >= 0
    filled = scores.masked_fill(~mask, -math.inf)
    expected = functional.cross_entropy(filled[kept], POSITIVE[kept])
    torch.testing.assert_close(ranker_loss(scores, POSITIVE, mask), expected, rtol=1e-12, atol=0)


def test_ranker_loss_of_a_batch_without_positives_is_zero_with_zero_gradient():
    scores, _, mask = ragged()
    loss = ranker_loss(scores, torch.full((5,), -1), mask)
    loss.backward()
    assert loss.item() == 0
    assert not bool(scores.grad.any())


def test_ranker_loss_computes_half_precision_in_float32():
    scores = ragged(dtype=torch.float32)[0].detach().bfloat16()
    loss = ranker_loss(scores, POSITIVE)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, ranker_loss(scores.float(), POSITIVE))


@pytest.mark.parametrize(
    ("scores", "mask", "message"),
    [
        (torch.zeros(5, 1), None, "at least 2 candidates"),
        (torch.zeros(5, 3).long(), None, "floating"),
        (torch.zeros(5), None, "queries, candidates"),
        (torch.zeros(5, 3), torch.ones(5, 3), "mask must be bool"),
        (torch.full((5, 3), math.nan), None, "scores has 15 NaN"),
    ],
)
def test_ranker_loss_refuses_inputs_that_would_give_a_wrong_loss(scores, mask, message):
    with pytest.raises(ObjectiveError, match=rf"^ranker_loss: .*{message}"):
        ranker_loss(scores, POSITIVE, mask)


def test_z_loss_is_the_formula_on_ragged_lists():
    student, _, mask = ragged()
    total = 0.0
    for ss, _, p in rows(student, student.detach(), mask):
        if p < 0 or len(ss) < 2:
            continue
        mean = sum(ss) / len(ss)
        deviation = math.sqrt(sum((s - mean) ** 2 for s in ss) / len(ss))
        total += math.log1p(math.exp(2.0 * (1.5 - (ss[p] - mean) / deviation))) / 2.0
    close(z_loss(student, mask, positive=POSITIVE, a=2.0, b=1.5), total / 4)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e4, 1e30])
def test_a_row_of_equal_scores_adds_nothing_to_z_loss(value):
    """Its deviation is 0, or what rounding makes of 0."""
    scores = torch.full((2, 7), value)
    scores[1] = torch.arange(7)
    scores.requires_grad_()
    loss = z_loss(scores, positive=torch.tensor([3, 3]))
    loss.backward()
    assert loss.item() == pytest.approx(z_loss(scores[1:], positive=torch.tensor([3])).item() / 2)
    assert not bool(scores.grad[0].any())
    assert bool(scores.grad[1].any())


def test_z_loss_takes_scores_that_differ_by_rounding_for_equal():
    """Such a difference is noise, and its gradient would be one over it."""
    scores = torch.tensor([[0.1, 0.1 + 7e-9, 0.1]], requires_grad=True)
    loss = z_loss(scores + 1e-8, positive=torch.tensor([0]))
    loss.backward()
    assert loss.item() == 0
    assert not bool(scores.grad.any())


@pytest.mark.parametrize("factor", [1e-30, 1e-3, 1e3, 1e30])
def test_scale_does_not_matter_to_z_loss_even_where_squares_would_leave_float32(factor):
    scores = torch.rand(3, 6, generator=torch.Generator().manual_seed(1))
    positive = torch.tensor([0, 4, 2])
    reference = scores.clone().requires_grad_()
    scaled = (scores * factor).requires_grad_()
    before, after = z_loss(reference, positive=positive), z_loss(scaled, positive=positive)
    before.backward()
    after.backward()
    torch.testing.assert_close(after, before, rtol=1e-5, atol=0)
    torch.testing.assert_close(scaled.grad * factor, reference.grad, rtol=1e-4, atol=1e-6)


def test_z_loss_has_a_gradient_orthogonal_to_the_scores():
    """Of two candidates that differ, z is +-1: no gradient at all."""
    student, _, _ = ragged()
    z_loss(student, positive=POSITIVE).backward()
    torch.testing.assert_close((student.grad * student).sum(1), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)
    pair = torch.tensor([[0.2, 0.9]], dtype=torch.float64, requires_grad=True)
    z_loss(pair, positive=torch.tensor([0])).backward()
    assert float(pair.grad.abs().max()) < 1e-12


@pytest.mark.parametrize("wrong", [{"a": 0.0}, {"a": -1.0}, {"b": math.inf}, {"b": math.nan}])
def test_z_loss_refuses_impossible_parameters(wrong):
    (name,) = wrong
    with pytest.raises(ObjectiveError, match=f"z_loss: {name}"):
        z_loss(torch.zeros(1, 2), positive=torch.tensor([0]), **wrong)


def test_ar2_takes_no_further_positive_for_a_negative():
    student, teacher = torch.tensor([[0.1, 0.5, 0.3]]), torch.tensor([[2.0, 9.0, 1.0]])
    first = torch.zeros(1, dtype=torch.int64)
    both = torch.tensor([[True, True, False]])
    with_two = ar2_loss(student, teacher, positive=first, positives=both)
    without_it = ar2_loss(student[:, [0, 2]], teacher[:, [0, 2]], positive=first)
    assert torch.equal(with_two, without_it)
