"""The library losses at their edges, and against loops written from their formulas.

Why: each of them has a place where the official code divides by zero, swaps an argument or meets padding; a golden
file has none of these.
"""

import itertools
import math

import pytest
import torch

from pipelines.errors import ObjectiveError
from pipelines.objectives.bag_of_words import bag_of_words_loss, bag_weights, ordinary_token_embedding
from pipelines.objectives.layer_distillation import layer_distillation_loss
from pipelines.objectives.loss_prediction import guided_share, loss_prediction_loss

DIVERGENCES = ("kl", "reverse", "jsd", "jsd_swapped")
LAYER_FORMS = (*DIVERGENCES, "cross_entropy", "l2")
PREDICTION_FORMS = ("relative", "absolute")


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def ragged(rows, width):
    """A mask whose row i has i + 1 real columns, at most `width`."""
    return torch.arange(width) <= torch.arange(rows).unsqueeze(1)


def assert_zero_with_zero_gradient(loss, leaf):
    loss.backward()
    assert loss.item() == 0
    assert bool((leaf.grad == 0).all())


# loss prediction


def test_relative_loss_prediction_is_its_formula():
    predicted, observed, mask = normal(5, 4), normal(5, 4, seed=1).round(decimals=0), ragged(5, 4)
    terms = [
        math.log1p(math.exp(-float(predicted[row, j] - predicted[row, i])))
        for row in range(5)
        for i, j in itertools.permutations(range(4), 2)
        if mask[row, i] and mask[row, j] and observed[row, j] > observed[row, i]
    ]
    assert len(terms) < 3 + 3 * 6  # the rounding made ties
    assert float(loss_prediction_loss(predicted, observed, mask)) == pytest.approx(math.fsum(terms) / len(terms))


def test_absolute_loss_prediction_is_the_error_of_standardised_losses():
    predicted, observed, mask = normal(5, 4), normal(5, 4, seed=1), ragged(5, 4)
    terms = []
    for row in range(1, 5):  # row 0 has one real item: nothing to standardise by
        real = observed[row][mask[row]]
        target = (real - real.mean()) / real.std(correction=1)
        terms += (predicted[row][mask[row]] - target).square().tolist()
    value = loss_prediction_loss(predicted, observed, mask, form="absolute")
    assert float(value) == pytest.approx(math.fsum(terms) / len(terms))


@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
def test_a_batch_whose_losses_are_all_tied_has_no_order_to_learn(epsilon):
    """The official code answers 0/0 here."""
    predicted = normal(2, 4).requires_grad_()
    observed = torch.full((2, 4), 0.7, dtype=torch.float64)
    assert_zero_with_zero_gradient(loss_prediction_loss(predicted, observed, epsilon=epsilon), predicted)


def test_the_order_form_sees_the_order_alone():
    predicted, observed = normal(3, 6), normal(3, 6, seed=1)
    assert loss_prediction_loss(predicted, observed) == loss_prediction_loss(predicted + 5, observed.exp() * 100)


def test_a_tied_group_is_pulled_to_its_mean_by_the_absolute_form():
    predicted = normal(2, 4).requires_grad_()
    value = loss_prediction_loss(predicted, torch.full((2, 4), 3.0, dtype=torch.float64), form="absolute")
    assert float(value.detach()) == pytest.approx(float(predicted.detach().square().mean()))


@pytest.mark.parametrize("form", PREDICTION_FORMS)
def test_loss_prediction_of_nothing_or_of_single_items_is_zero(form):
    for real in (0, 1):
        predicted = normal(3, 4).requires_grad_()
        mask = (torch.arange(4) < real).expand(3, 4)
        assert_zero_with_zero_gradient(
            loss_prediction_loss(predicted, normal(3, 4, seed=1), mask, form=form), predicted
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("form", "epsilon"), [("relative", 0.0), ("relative", 1e-6), ("absolute", 0.0)])
def test_extreme_predictions_stay_finite(form, epsilon, dtype):
    predicted = torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype, requires_grad=True)
    value = loss_prediction_loss(predicted, torch.tensor([[0.0, 1e4, 1e-4]]), form=form, epsilon=epsilon)
    value.backward()
    assert bool(torch.isfinite(value))
    assert bool(torch.isfinite(predicted.grad).all())


def test_the_share_of_guided_choices_grows_to_one_half():
    shares = [guided_share(epoch, 4) for epoch in range(4)]
    assert shares == [0.125, 0.25, 0.375, 0.5]
    for epoch in (-1, 4):
        with pytest.raises(ObjectiveError, match=rf"epoch must be in \[0, 4\), got {epoch}"):
            guided_share(epoch, 4)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"form": "ordinal"}, "unknown form 'ordinal'"),
        ({"epsilon": -1e-6}, "epsilon must be a finite number of at least 0, got -1e-06"),
        ({"epsilon": math.nan}, "epsilon .* got nan"),
    ],
)
def test_loss_prediction_refuses_impossible_parameters(arguments, complaint):
    with pytest.raises(ObjectiveError, match=complaint):
        loss_prediction_loss(normal(2, 3), normal(2, 3), **arguments)


def test_loss_prediction_refuses_nan_but_not_under_the_mask():
    observed, mask = normal(2, 3, seed=1), torch.tensor([[True, True, True], [True, True, False]])
    clean = loss_prediction_loss(normal(2, 3), observed, mask)
    observed[1, 2] = math.nan
    assert loss_prediction_loss(normal(2, 3), observed, mask) == clean
    with pytest.raises(ObjectiveError, match="1 NaN or infinite"):
        loss_prediction_loss(normal(2, 3), observed)


# layer distillation


def kl(a, b):
    return math.fsum(float(x * (x / y).log()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("form", LAYER_FORMS)
def test_layer_distillation_is_its_formula_over_real_tokens(form):
    student, teacher, mask = normal(3, 2, 5), normal(3, 2, 5, seed=1), ragged(3, 2)
    temperature = 1.0 if form in ("cross_entropy", "l2") else 1.7
    total = 0.0
    for row, token in mask.nonzero().tolist():
        s, t = student[row, token], teacher[row, token]
        q, p = (s / temperature).softmax(0), (t / temperature).softmax(0)
        m = (p + q) / 2
        total += {
            "kl": lambda p=p, q=q: kl(p, q),
            "reverse": lambda p=p, q=q: kl(q, p),
            "jsd": lambda p=p, q=q, m=m: (kl(p, m) + kl(q, m)) / 2,
            "jsd_swapped": lambda p=p, q=q, m=m: (kl(m, p) + kl(m, q)) / 2,
            "cross_entropy": lambda q=q, t=t: -float(q[t.argmax()].log()),
            "l2": lambda s=s, t=t: float((s - t).square().sum()),
        }[form]()
    wanted = {"cross_entropy": total / int(mask.sum()), "l2": math.sqrt(total)}
    value = layer_distillation_loss(student, teacher, mask, form=form, temperature=temperature)
    assert float(value) == pytest.approx(wanted.get(form, total * temperature**2 / 3))


def test_the_textbook_jsd_is_symmetric_and_bounded_and_the_swapped_one_is_unbounded():
    """What tells the two apart: on models that are sure of different words one ends at log 2 a token."""
    student, teacher = torch.tensor([[[100.0, 0.0]]]), torch.tensor([[[0.0, 100.0]]])
    assert float(layer_distillation_loss(student, teacher, form="jsd")) == pytest.approx(math.log(2))
    assert float(layer_distillation_loss(student, teacher, form="jsd_swapped")) > 20
    student, teacher = normal(2, 3, 7), normal(2, 3, 7, seed=1)
    forward = layer_distillation_loss(student, teacher, form="jsd")
    assert float(forward) == pytest.approx(float(layer_distillation_loss(teacher, student, form="jsd")))


@pytest.mark.parametrize("form", DIVERGENCES)
def test_the_gradient_of_the_divergences_is_right(form):
    """Through the mixture m as well, as in the official code."""
    student = normal(2, 2, 4).requires_grad_()
    teacher = normal(2, 2, 4, seed=1)
    assert torch.autograd.gradcheck(lambda s: layer_distillation_loss(s, teacher, form=form), student)


@pytest.mark.parametrize("form", [form for form in LAYER_FORMS if form != "cross_entropy"])
def test_equal_models_have_no_loss_and_no_gradient(form):
    student = normal(2, 3, 5).requires_grad_()
    loss = layer_distillation_loss(student, student.detach().clone(), form=form)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-15)
    torch.testing.assert_close(student.grad, torch.zeros_like(student), rtol=0, atol=1e-15)


@pytest.mark.parametrize("form", LAYER_FORMS)
def test_no_real_token_at_all_is_exactly_zero(form):
    student = normal(2, 3, 5).requires_grad_()
    mask = torch.zeros(2, 3, dtype=torch.bool)
    assert_zero_with_zero_gradient(layer_distillation_loss(student, normal(2, 3, 5, seed=1), mask, form=form), student)


@pytest.mark.parametrize("form", LAYER_FORMS)
def test_padded_tokens_have_no_influence_nan_included(form):
    student, teacher = normal(2, 3, 5), normal(2, 3, 5, seed=1)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    clean = layer_distillation_loss(student, teacher, mask, form=form)
    student[~mask], teacher[~mask] = math.nan, math.inf
    student.requires_grad_()
    dirty = layer_distillation_loss(student, teacher, mask, form=form)
    dirty.backward()
    assert dirty == clean
    assert bool((student.grad[~mask] == 0).all())
    with pytest.raises(ObjectiveError, match="student_outputs has 15 NaN"):
        layer_distillation_loss(student, teacher, form=form)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", LAYER_FORMS)
def test_extreme_token_logits_stay_finite(form, dtype):
    student = torch.tensor([[[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]]], dtype=dtype, requires_grad=True)
    loss = layer_distillation_loss(student, -student.detach(), form=form)
    loss.backward()
    assert loss.dtype == torch.float32
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(student.grad).all())


def test_the_teachers_outputs_get_no_gradient():
    student, teacher = normal(1, 2, 3).requires_grad_(), normal(1, 2, 3, seed=1).requires_grad_()
    layer_distillation_loss(student, teacher, form="jsd").backward()
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("student", "teacher", "arguments", "complaint"),
    [
        (normal(2, 3), normal(2, 3), {}, r"needs two \[sequences, length, vocabulary\]"),
        (normal(2, 3, 4), normal(2, 3, 5), {}, "of one shape"),
        (normal(2, 3, 1), normal(2, 3, 1), {}, "at least 2"),
        (normal(2, 3, 4).long(), normal(2, 3, 4), {}, "must be floating"),
        (normal(2, 3, 4), normal(2, 3, 4), {"temperature": 0.0}, "temperature must be a positive finite number"),
        (normal(2, 3, 4), normal(2, 3, 4), {"form": "js"}, "unknown form 'js'"),
        (
            normal(2, 3, 4),
            normal(2, 3, 4),
            {"mask": torch.ones(2, 3, 4).bool()},
            r"mask must be bool of shape \(2, 3\)",
        ),
    ],
)
def test_layer_distillation_refuses(student, teacher, arguments, complaint):
    with pytest.raises(ObjectiveError, match=complaint):
        layer_distillation_loss(student, teacher, **arguments)


# bag of words


def test_bag_of_words_is_its_formula():
    logits, mask = normal(4, 3, 6), ragged(4, 3)
    weights = normal(4, 6, seed=1).abs()
    terms = []
    for row in range(4):
        pooled = torch.stack([logits[row, token] for token in range(3) if mask[row, token]]).max(dim=0).values
        terms.append(-float((weights[row] * pooled.softmax(0).log()).sum()))
    assert float(bag_of_words_loss(logits, weights, mask)) == pytest.approx(math.fsum(terms) / 4)


def test_words_of_a_text_weigh_once_unless_repeats_are_counted():
    ids = torch.tensor([[2, 2, 4, -7], [1, 3, 3, 3]])
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    once = torch.tensor([[0, 0, 1 / 3, 0, 1 / 3], [0, 1 / 4, 0, 1 / 4, 0]])
    torch.testing.assert_close(bag_weights(ids, mask, vocabulary_size=5), once)
    repeated = bag_weights(ids, mask, vocabulary_size=5, count_repeats=True)
    torch.testing.assert_close(repeated, torch.tensor([[0, 0, 2 / 3, 0, 1 / 3], [0, 1 / 4, 0, 3 / 4, 0]]))
    with pytest.raises(ObjectiveError, match="token id -7 is outside the vocabulary of 5"):
        bag_weights(ids, vocabulary_size=5)


def test_texts_without_tokens_or_without_words_add_nothing():
    logits, weights = normal(3, 2, 4), bag_weights(torch.tensor([[0, 1], [2, 3], [1, 1]]), vocabulary_size=4)
    weights[2] = 0
    mask = torch.tensor([[True, True], [False, False], [True, True]])
    alone = bag_of_words_loss(logits[:1], weights[:1])
    logits[1] = math.nan
    logits.requires_grad_()
    loss = bag_of_words_loss(logits, weights, mask)
    loss.backward()
    assert loss == alone
    assert bool((logits.grad[1:] == 0).all())
    assert bool((ordinary_token_embedding(logits, mask)[1] == 0).all())
    logits.grad = None
    assert_zero_with_zero_gradient(bag_of_words_loss(logits, weights, mask & False), logits)


def test_tokens_that_share_a_maximum_share_its_gradient():
    """Otherwise the order of equal tokens would decide which of them learns."""
    logits = torch.zeros(1, 2, 3, dtype=torch.float64, requires_grad=True)
    bag_of_words_loss(logits, torch.tensor([[1.0, 0.0, 0.0]])).backward()
    torch.testing.assert_close(logits.grad[0, 0], logits.grad[0, 1])
    assert float(logits.grad[0, 0, 0]) == pytest.approx(-1 / 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_vocabulary_logits_stay_finite(dtype):
    logits = torch.tensor([[[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4]]], dtype=dtype, requires_grad=True)
    loss = bag_of_words_loss(logits, torch.tensor([[0.0, 0.5, 0.5]]), torch.tensor([[True, False]]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1.5e4, rel=1e-2)
    assert bool(torch.isfinite(logits.grad).all())


@pytest.mark.parametrize(
    ("logits", "weights", "complaint"),
    [
        (normal(2, 4), normal(2, 4).abs(), r"floating \[texts, length, vocabulary\]"),
        (normal(2, 3, 4), normal(2, 3).abs(), r"weights must be floating \(2, 4\)"),
        (normal(2, 3, 4), -normal(2, 4).abs(), "weights must not be negative"),
        (normal(2, 3, 4) * math.nan, normal(2, 4).abs(), "token_logits has 24 NaN"),
    ],
)
def test_bag_of_words_refuses(logits, weights, complaint):
    with pytest.raises(ObjectiveError, match=complaint):
        bag_of_words_loss(logits, weights)
