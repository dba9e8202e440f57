"""Losses that learn from the teacher's order: against loops written from their formulas, options, edges, refusals.

Why: golden files hold a few small inputs, without the options that are ours (teacher ranks as grades, a tie margin,
either of a pair in the top k). Loops over Python floats hold every option on ragged lists with ties on both sides.
"""

import math

import pytest
import torch

from pipelines.errors import ObjectiveError
from pipelines.objectives.adr_mse import adr_mse_loss
from pipelines.objectives.approx_ndcg import approx_ndcg_loss
from pipelines.objectives.cprd import cprd_loss
from pipelines.objectives.grades import normalised_gains, tied_ranks
from pipelines.objectives.lambda_loss import lambda_loss
from pipelines.objectives.list_mle import list_mle_loss, p_list_mle_loss
from pipelines.objectives.ranknet import ranknet_loss

TEMPERATURE = 0.3
seeds = pytest.mark.parametrize("seed", range(6))
grades_of_all_kinds = pytest.mark.parametrize("grades", ["teacher_rank", "as_given"])
top_k_rules = pytest.mark.parametrize(("top_k", "rule"), [(None, "either"), (2, "either"), (2, "both"), (99, "both")])


def lists(seed, *, queries=5, width=7, labels=False):
    """Ragged, shuffled padding, tied teachers and now and then tied students; a list of one and one of none."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randint(-20, 21, (queries, width), generator=generator).double() / 10
    low = 0 if labels else -3
    teacher = torch.randint(low, 5, (queries, width), generator=generator).double()
    mask = torch.rand(queries, width, generator=generator) < 0.8
    mask[0], mask[1] = False, False
    mask[1, 3] = True
    mask[2, :2] = True
    return student, teacher, mask


def real(student, teacher, mask):
    """Per query with a candidate: [(student score, teacher score), ...] in column order."""
    rows = [
        [(float(s), float(t)) for s, t, m in zip(*row, strict=True) if m]
        for row in zip(student, teacher, mask, strict=True)
    ]
    return [row for row in rows if row]


def places(scores):
    """1-based place of each score, best first, ties by column."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return [order.index(i) + 1 for i in range(len(scores))]


def counts(place, other, top_k, rule):
    if top_k is None:
        return True
    inside = (place <= top_k, other <= top_k)
    return any(inside) if rule == "either" else all(inside)


def logistic(difference):
    return math.log1p(math.exp(-difference / TEMPERATURE))


def soft_rank(scores, i):
    return 1 + sum(1 / (1 + math.exp(-(s - scores[i]) / TEMPERATURE)) for j, s in enumerate(scores) if j != i)


def gains(labels, grades, top_k=None):
    gain = [2**y - 1 if grades == "as_given" else 1 / (1 + sum(z > y for z in labels)) for y in labels]
    ideal = sum(g / math.log2(1 + r) for r, g in enumerate(sorted(gain, reverse=True)[:top_k], 1))
    return [g / ideal if ideal else 0.0 for g in gain]


def assert_equal(loss, expected):
    assert loss.item() == pytest.approx(expected, rel=1e-11, abs=1e-13)


@seeds
@top_k_rules
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("margin", [0.0, 2.0])
def test_ranknet_is_its_formula(seed, top_k, rule, weighted, margin):
    student, teacher, mask = lists(seed)
    terms = []
    for row in real(student, teacher, mask):
        place = places([s for s, _ in row])
        for i, (s, t) in enumerate(row):
            for j, (s_other, t_other) in enumerate(row):
                if t > t_other + margin and counts(place[i], place[j], top_k, rule):
                    terms.append(logistic(s - s_other) * (t - t_other if weighted else 1))
    loss = ranknet_loss(
        student,
        teacher,
        mask,
        temperature=TEMPERATURE,
        tie_margin=margin,
        weight_by_difference=weighted,
        top_k=top_k,
        top_k_pairs=rule,
    )
    assert_equal(loss, sum(terms) / max(len(terms), 1))


def lambda_terms(row, weighting, grades, top_k, rule):
    """(weight, nats) of each pair of one list."""
    place = places([s for s, _ in row])
    gain = gains([t for _, t in row], grades, top_k)
    inverse = [1 / math.log2(1 + p) for p in place]
    if weighting == "ndcg_loss1" and len({t for _, t in row}) < 2:
        return
    for i, (s, t) in enumerate(row):
        for j, (s_other, t_other) in enumerate(row):
            if not counts(place[i], place[j], top_k, rule) or (t <= t_other and weighting != "ndcg_loss1"):
                continue
            apart = abs(place[i] - place[j])
            rho = abs(inverse[i] - inverse[j])
            delta = abs(1 / math.log2(1 + apart) - 1 / math.log2(2 + apart)) if apart else 0.0
            between = abs(gain[i] - gain[j])
            weight = {
                "none": 1.0,
                "ndcg_loss1": gain[i] * inverse[i],
                "ndcg_loss2": between * delta,
                "lambda_rank": between * rho,
                "ndcg_loss2pp": between * (rho + 7 * delta),
            }[weighting]
            yield weight, logistic(s - s_other)


@seeds
@top_k_rules
@grades_of_all_kinds
@pytest.mark.parametrize("weighting", ["none", "ndcg_loss1", "ndcg_loss2", "lambda_rank", "ndcg_loss2pp"])
def test_lambda_loss_is_its_formula(seed, top_k, rule, grades, weighting):
    student, teacher, mask = lists(seed, labels=grades == "as_given")
    rows = real(student, teacher, mask)
    terms = [term for row in rows for term in lambda_terms(row, weighting, grades, top_k, rule)]
    total = sum(weight * nats for weight, nats in terms)
    expected = {
        "sum": total,
        "mean_over_pairs": total / max(len(terms), 1),
        "sum_over_pairs_mean_over_queries": total / len(rows),
    }
    for reduction, value in expected.items():
        for base, unit in (("natural", 1.0), ("binary", math.log(2))):
            loss = lambda_loss(
                student,
                teacher,
                mask,
                temperature=TEMPERATURE,
                weighting=weighting,
                mu=7,
                grades=grades,
                top_k=top_k,
                top_k_pairs=rule,
                log_base=base,
                reduction=reduction,
            )
            assert_equal(loss, value / unit)


def draws(row):
    """Nats of each draw, in the teacher's order."""
    ranked = [s / TEMPERATURE for s, _ in sorted(row, key=lambda pair: -pair[1])]
    return [math.log(sum(math.exp(s) for s in ranked[j:])) - ranked[j] for j in range(len(ranked))]


@seeds
def test_list_mle_is_its_formula(seed):
    student, teacher, mask = lists(seed)
    rows = real(student, teacher, mask)
    loss = list_mle_loss(student, teacher, mask, temperature=TEMPERATURE)
    assert_equal(loss, sum(sum(draws(row)) for row in rows) / len(rows))


@seeds
@pytest.mark.parametrize(("weight_ranks", "first"), [("from_one", 1), ("from_zero", 0)])
def test_p_list_mle_is_its_formula(seed, weight_ranks, first):
    student, teacher, mask = lists(seed)
    rows = real(student, teacher, mask)
    expected = 0.0
    for row in rows:
        weights = [2 ** (len(row) - j) - 1 for j in range(first, first + len(row))]
        expected += sum(w * d for w, d in zip(weights, draws(row), strict=True)) / max(sum(weights), 1)
    loss = p_list_mle_loss(student, teacher, mask, temperature=TEMPERATURE, weight_ranks=weight_ranks)
    assert_equal(loss, expected / len(rows))


@seeds
def test_list_mle_is_cprd_with_every_candidate_valid(seed):
    """The relation that both docstrings state, gradient included."""
    student, teacher, mask = lists(seed)
    pair = [student.clone().requires_grad_() for _ in range(2)]
    ours = list_mle_loss(pair[0], teacher, mask)
    cprd = cprd_loss(pair[1], teacher, mask, reduction="sum_over_positions_mean_over_queries")
    for loss in (ours, cprd):
        loss.backward()
    assert_equal(ours, cprd.item())
    torch.testing.assert_close(pair[0].grad, pair[1].grad, rtol=1e-12, atol=1e-13)


@seeds
def test_adr_mse_is_its_formula(seed):
    """Tied candidates share the mean of their ranks."""
    student, teacher, mask = lists(seed)
    terms = []
    for row in real(student, teacher, mask):
        for i, (_, t) in enumerate(row):
            better, tied = sum(z > t for _, z in row), sum(z == t for _, z in row)
            rank = better + (tied + 1) / 2
            terms.append((rank - soft_rank([s for s, _ in row], i)) ** 2 / math.log2(1 + rank))
    assert_equal(adr_mse_loss(student, teacher, mask, temperature=TEMPERATURE), sum(terms) / len(terms))


@seeds
@grades_of_all_kinds
def test_approx_ndcg_is_its_formula(seed, grades):
    student, teacher, mask = lists(seed, labels=grades == "as_given")
    rows = real(student, teacher, mask)
    expected = 0.0
    for row in rows:
        if len({t for _, t in row}) > 1:
            gain = gains([t for _, t in row], grades)
            scores = [s for s, _ in row]
            expected += 1 - sum(g / math.log2(1 + soft_rank(scores, i)) for i, g in enumerate(gain))
    loss = approx_ndcg_loss(student, teacher, mask, temperature=TEMPERATURE, grades=grades)
    assert_equal(loss, expected / len(rows))


@seeds
def test_ranks_of_ties_are_the_places_of_their_group(seed):
    _, teacher, mask = lists(seed)
    ranks = tied_ranks(teacher, mask)
    for scores, listed, best, worst in zip(teacher, mask, ranks.best, ranks.worst, strict=True):
        for i in listed.nonzero().flatten():
            assert best[i] == 1 + int((scores[listed] > scores[i]).sum())
            assert worst[i] == int((scores[listed] >= scores[i]).sum())


# --- what the public code of today says, where the golden files hold that of an older commit


class _Scores(torch.nn.Module):
    """A cross-encoder whose scores are given: sentence-transformers' losses take a model and texts."""

    num_labels = 1
    device = torch.device("cpu")

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def preprocess(self, pairs, **_):
        assert len(pairs) == len(self.scores)
        return {}

    def forward(self, _):
        return {"scores": self.scores}


PRESENT_FORMS = {
    "RankNetLoss": (
        {"k": 3, "sigma": 1 / TEMPERATURE},
        lambda s, y, m: ranknet_loss(s, y, m, temperature=TEMPERATURE, top_k=3, log_base="binary"),
    ),
    "LambdaLoss": (
        {"k": 3, "sigma": 1 / TEMPERATURE},
        lambda s, y, m: lambda_loss(
            s, y, m, temperature=TEMPERATURE, top_k=3, grades="as_given", reduction="mean_over_pairs"
        ),
    ),
    "PListMLELoss": ({"respect_input_order": False}, lambda s, y, m: p_list_mle_loss(s, y, m, temperature=1)),
    "ADRMSELoss": ({"alpha": 1 / TEMPERATURE}, lambda s, y, m: adr_mse_loss(s, y, m, temperature=TEMPERATURE)),
}


@pytest.mark.parametrize("name", PRESENT_FORMS)
def test_defaults_are_the_forms_of_the_installed_sentence_transformers(name):
    """It has since moved to the papers' forms: either of a pair in the top k, weights of p-ListMLE from rank 1."""
    from sentence_transformers.cross_encoder import losses

    options, ours = PRESENT_FORMS[name]
    generator = torch.Generator().manual_seed(3)
    student = torch.randn(4, 9, generator=generator)
    labels = torch.stack([torch.randperm(9, generator=generator) for _ in range(4)]).float()
    labels = labels if name == "PListMLELoss" else (labels / 2).floor()
    sizes = (9, 6, 2, 8)
    mask = torch.arange(9) < torch.tensor(sizes).unsqueeze(1)
    mine, theirs = (student.clone().requires_grad_() for _ in range(2))
    official = getattr(losses, name)(_Scores(theirs[mask]), mini_batch_size=-1, **options)
    expected = official((["q"] * 4, [["d"] * n for n in sizes]), [y[:n] for y, n in zip(labels, sizes, strict=True)])
    expected.backward()
    loss = ours(mine, labels, mask)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


# --- options


def test_ranknet_drops_pairs_at_the_margin_and_keeps_those_above():
    """Margin 1: of logits 0, 1, 2.5 only (2.5, 0) and (2.5, 1) are ordered, so the first two are not told apart."""
    student = torch.zeros(1, 3, requires_grad=True)
    ranknet_loss(student, torch.tensor([[0.0, 1.0, 2.5]]), temperature=1, tie_margin=1.0).backward()
    torch.testing.assert_close(student.grad, torch.tensor([[0.25, 0.25, -0.5]]))


def test_ranknet_reads_a_float64_teacher_beside_a_float32_student():
    """In float32 these two logits would tie and teach nothing."""
    student = torch.tensor([[0.2, 0.3]], requires_grad=True)
    ranknet_loss(student, torch.tensor([[1.0 + 1e-12, 1.0]], dtype=torch.float64)).backward()
    assert float(student.grad[0, 0]) < 0


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t: ranknet_loss(s, t, temperature=0.01),
        lambda s, t: lambda_loss(s, t, temperature=0.01, weighting="none", log_base="natural"),
    ],
)
def test_badly_misordered_pairs_keep_their_gradient(loss):
    """Official code of that commit clamps the sigmoid at 1e-10 and then has no gradient where it is needed most."""
    student = torch.tensor([[-1.0, 1.0]], requires_grad=True)
    loss(student, torch.tensor([[1.0, 0.0]])).backward()
    torch.testing.assert_close(student.grad, torch.tensor([[-100.0, 100.0]]))


@pytest.mark.parametrize("function", [ranknet_loss, lambda_loss])
def test_top_k_decides_who_learns(function):
    """Student order is column order and all wrong: with `both` nobody outside the first two columns learns."""
    teacher = torch.tensor([[1.0, 2.0, 3.0, 4.0]])

    def learners(top_k, rule):
        student = torch.tensor([[0.4, 0.3, 0.2, 0.1]], requires_grad=True)
        function(student, teacher, top_k=top_k, top_k_pairs=rule).backward()
        return (student.grad != 0).flatten().tolist(), student.grad

    assert learners(2, "both")[0] == [True, True, False, False]
    everybody, of_two = learners(2, "either")
    assert everybody == [True, True, True, True]
    assert not torch.equal(of_two, learners(None, "either")[1])


def test_lambda_loss_pays_most_attention_to_the_top():
    """The same swap costs more in the first two places than in the last two; without weights it costs the same."""
    teacher = torch.tensor([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])
    perfect = [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    top, bottom = [0.5, 0.6, *perfect[2:]], [*perfect[:4], 0.1, 0.2]
    for weighting in ("lambda_rank", "ndcg_loss2", "ndcg_loss2pp"):
        at_top, at_bottom = (float(lambda_loss(torch.tensor([s]), teacher, weighting=weighting)) for s in (top, bottom))
        assert at_top > at_bottom
    at_top, at_bottom = (float(lambda_loss(torch.tensor([s]), teacher, weighting="none")) for s in (top, bottom))
    assert at_top == pytest.approx(at_bottom)


def test_mu_zero_is_lambda_rank_and_a_large_mu_ndcg_loss2():
    student, teacher, mask = lists(1)

    def value(**options):
        return float(lambda_loss(student, teacher, mask, **options))

    assert value(mu=0.0) == pytest.approx(value(weighting="lambda_rank"))
    assert value(mu=1e6) / 1e6 == pytest.approx(value(weighting="ndcg_loss2"), rel=1e-4)


@pytest.mark.parametrize("highest", [10.0, 200.0, 1e4])
def test_high_grades_do_not_overflow(highest):
    """2^200 is beyond float32; only the ratio of gains matters, here 2 to 1."""
    grades = torch.tensor([[highest, highest - 1, 0.0]])
    gain = normalised_gains("x", grades, torch.ones(1, 3, dtype=torch.bool), grades="as_given")
    assert bool(torch.isfinite(gain).all())
    assert float(gain[0, 0] / gain[0, 1]) == pytest.approx(2, rel=2e-3)
    assert float(gain[0, 2]) == 0


def test_p_list_mle_weighs_a_list_of_thousands():
    """2^4000 overflows; the first place must still have about half of the weight, and the weights sum to 1."""
    size = 4000
    student = torch.zeros(1, size, requires_grad=True)
    loss = p_list_mle_loss(student, -torch.arange(float(size)).unsqueeze(0), temperature=1)
    loss.backward()
    # Equal scores: draw j costs log(size - j), nearly the same where there is weight.
    assert loss.item() == pytest.approx(math.log(size), abs=1e-3)
    assert float(student.grad[0, 0]) == pytest.approx(-0.5, abs=1e-3)


@pytest.mark.parametrize("function", [adr_mse_loss, approx_ndcg_loss])
def test_rank_losses_vanish_on_the_teachers_order_at_low_temperature(function):
    student = torch.tensor([[0.9, 0.1, 0.5, 0.3]])
    assert float(function(student, student * 7, temperature=1e-3)) == pytest.approx(0, abs=1e-6)
    assert float(function(student, -student, temperature=1e-3)) > 0.1


def test_adr_mse_asks_for_ties_where_the_teacher_ties():
    student = torch.tensor([[0.5, 0.2, 0.2, 0.0]], requires_grad=True)
    loss = adr_mse_loss(student, torch.tensor([[3.0, 1.0, 1.0, 0.0]]), temperature=1e-3)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(student.grad, torch.zeros(1, 4))


# --- edges


@pytest.mark.parametrize(
    "loss",
    [
        ranknet_loss,
        lambda_loss,
        lambda s, t, m: lambda_loss(s, t, m, weighting="ndcg_loss1", reduction="mean_over_pairs"),
        lambda s, t, m: lambda_loss(s, t.abs(), m, grades="as_given"),
        approx_ndcg_loss,
        lambda s, t, m: approx_ndcg_loss(s, t.abs(), m, grades="as_given"),
    ],
)
@pytest.mark.parametrize("value", [0.0, -3.25])
def test_a_tied_teacher_teaches_nothing(loss, value):
    """Exactly 0 and no gradient, in a batch of its own and beside a list that teaches."""
    student, _, mask = lists(2)
    student.requires_grad_()
    tied = torch.full_like(student, value)
    alone = loss(student, tied, mask)
    alone.backward()
    assert alone.item() == 0
    assert not bool(student.grad.any())
    tied[4] = torch.arange(7.0)
    loss(student, tied, mask).backward()
    assert not bool(student.grad[:4].any())
    assert bool(student.grad[4].any())


@pytest.mark.parametrize(
    "function", [ranknet_loss, list_mle_loss, p_list_mle_loss, lambda_loss, adr_mse_loss, approx_ndcg_loss]
)
def test_lists_of_one_cost_exactly_nothing(function):
    """Rounding in float32 would leave 1e-7 of the last draw of a list, value and gradient, for autograd to follow."""
    student = torch.rand(50, 3, generator=torch.Generator().manual_seed(4)).requires_grad_()
    mask = torch.arange(3).expand(50, 3) == 1
    loss = function(student, torch.ones(50, 3), mask)
    loss.backward()
    assert loss.item() == 0
    assert not bool(student.grad.any())


@pytest.mark.parametrize("function", [list_mle_loss, p_list_mle_loss])
def test_lists_keep_column_order_where_the_teacher_ties(function):
    """Wide enough that an unstable sort really reorders ties."""
    student = torch.rand(1, 3000, generator=torch.Generator().manual_seed(2))
    tied = function(student, torch.zeros(1, 3000))
    assert torch.equal(tied, function(student, -torch.arange(3000.0).unsqueeze(0)))


SQUARE = torch.zeros(2, 3)


@pytest.mark.parametrize("function", [lambda_loss, approx_ndcg_loss])
def test_negative_grades_are_refused_with_advice(function):
    """Raw logits given as grades would have gains below 0 and an nDCG without meaning."""
    teacher, mask = torch.tensor([[0.0, 2.0, -1.5], [-7.0, 0.0, 1.0]]), torch.ones(2, 3, dtype=torch.bool)
    mask[1, 0] = False
    with pytest.raises(ObjectiveError, match=r"1 of 6 are, the first \(-1\.5\) at \(0, 2\).*'teacher_rank'"):
        function(SQUARE, teacher, mask, grades="as_given")
    function(SQUARE, teacher.masked_fill(teacher == -1.5, 0), mask, grades="as_given")  # padding may be negative


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ranknet_loss(SQUARE, SQUARE, temperature=0), "ranknet: temperature"),
        (lambda: ranknet_loss(SQUARE, SQUARE, tie_margin=-1), "ranknet: tie_margin .* got -1"),
        (lambda: ranknet_loss(SQUARE, SQUARE, tie_margin=math.nan), "ranknet: tie_margin"),
        (lambda: ranknet_loss(SQUARE, SQUARE, top_k=0), "ranknet: top_k must be at least 1, got 0"),
        (lambda: ranknet_loss(SQUARE, SQUARE, top_k_pairs="any"), "ranknet: unknown top_k_pairs 'any'"),
        (lambda: ranknet_loss(SQUARE, SQUARE, log_base="ten"), "ranknet: unknown log_base 'ten'"),
        (lambda: list_mle_loss(SQUARE, SQUARE, temperature=math.inf), "list_mle: temperature"),
        (lambda: p_list_mle_loss(SQUARE, SQUARE, temperature=-1), "p_list_mle: temperature"),
        (lambda: p_list_mle_loss(SQUARE, SQUARE, weight_ranks="one"), "p_list_mle: unknown weight_ranks 'one'"),
        (lambda: lambda_loss(SQUARE, SQUARE, temperature=0), "lambda_loss: temperature"),
        (lambda: lambda_loss(SQUARE, SQUARE, mu=-0.5), "lambda_loss: mu .* got -0.5"),
        (lambda: lambda_loss(SQUARE, SQUARE, top_k=-2), "lambda_loss: top_k must be at least 1, got -2"),
        (lambda: lambda_loss(SQUARE, SQUARE, weighting="ndcg"), "lambda_loss: unknown weighting 'ndcg'"),
        (lambda: lambda_loss(SQUARE, SQUARE, reduction="mean"), "lambda_loss: unknown reduction 'mean'"),
        (lambda: lambda_loss(SQUARE, SQUARE, grades="binary"), "lambda_loss: unknown grades 'binary'"),
        (lambda: adr_mse_loss(SQUARE, SQUARE, temperature=0), "adr_mse: temperature"),
        (lambda: approx_ndcg_loss(SQUARE, SQUARE, temperature=0), "approx_ndcg: temperature"),
        (lambda: approx_ndcg_loss(SQUARE, SQUARE, grades="binary"), "approx_ndcg: unknown grades 'binary'"),
    ],
)
def test_impossible_parameters_are_refused_by_name_and_value(call, message):
    with pytest.raises(ObjectiveError, match=message):
        call()
