"""What must hold for every registered objective, whoever wrote it: called by name, on one consistent batch.

Why: these are the properties a training loop relies on without looking (padding, order, half precision, a batch with
nothing to learn from). An objective that is added to the registry is held to them without a line of test.
Exceptions are named here, each with its reason.
"""

import math
import typing

import pytest
import torch
from sample_inputs import (
    DIFFERENTIABLE,
    axes,
    call,
    completed,
    first_query,
    reordered,
    sample,
    value_and_gradients,
)

from pipelines.errors import ObjectiveError
from pipelines.objectives.registry import OBJECTIVES

NAMES = tuple(OBJECTIVES)
every_objective = pytest.mark.parametrize("name", NAMES)
ORDER_ONLY = {"cprd", "ranknet", "list_mle", "p_list_mle", "lambda_loss", "adr_mse", "approx_ndcg"}
"""Objectives to which the teacher is an order and nothing else."""
BOTH_SIDES_LEARN = {"rocketqa_v2"}
RANDOM_DRAWS = {"mochi"}
"""A query's mixtures are drawn by its place in the batch: another order of queries draws other mixtures."""
SUMS_OVER_THE_BATCH = {
    "ar2_code_compat": "the official code sums the adversarial term over the batch",
    "mw": "the paper's form compares every positive with the negatives of every query",
    "sup_con": "copies of a query share its positives, and compete in the other direction",
    "nspt": "copies of a query are more negatives for each other",
    "mochi": "a copy draws other mixtures",
}
"""Where a query repeated four times is not the same batch, and why."""
CONSTANTS_FROM_THE_STUDENT = {"mochi"}
"""Synthetic negatives are constants made from the student's own embeddings: finite differences see them move."""
LIST_OBJECTIVES = [n for n in NAMES if "mask" in OBJECTIVES[n].tensors]
OWN_LIST_ONLY = [n for n in LIST_OBJECTIVES if "batch_scores" not in OBJECTIVES[n].required_tensors]


OPTIONS_THAT_READ = {
    "cprd": {"directions": "both", "easy_negatives": True},
    "info_nce": {"teacher_margin": 0.5},
}
"""Parameters with which an objective reads the optional tensors that its defaults leave alone."""


def floating_inputs(name):
    batch = sample(0)
    return [t for t in OBJECTIVES[name].tensors if t in batch and batch[t].is_floating_point()]


@every_objective
def test_a_batch_gives_a_finite_scalar_and_a_gradient(name):
    loss, gradients = value_and_gradients(name, sample(1))
    assert loss.ndim == 0
    assert loss.dtype == torch.float64
    assert bool(torch.isfinite(loss))
    assert gradients
    for tensor, gradient in gradients.items():
        assert bool(torch.isfinite(gradient).all()), tensor
    assert any(bool((gradient != 0).any()) for gradient in gradients.values())


@every_objective
def test_gradients_agree_with_finite_differences(name):
    if name in CONSTANTS_FROM_THE_STUDENT:
        pytest.skip("its synthetic negatives are constants that finite differences would move")
    batch = sample(2)
    leaves = [t for t in OBJECTIVES[name].required_tensors if t in DIFFERENTIABLE]
    inputs = tuple(batch[t].clone().requires_grad_() for t in leaves)
    assert torch.autograd.gradcheck(
        lambda *values: call(name, batch | dict(zip(leaves, values, strict=True))), inputs, atol=1e-6, rtol=1e-5
    )


@every_objective
def test_the_teacher_gets_no_gradient(name):
    batch = sample(3)
    teachers = [t for t in ("teacher_scores", "batch_teacher_scores") if t in OBJECTIVES[name].tensors]
    for teacher in teachers:
        leaf = batch[teacher].clone().requires_grad_()
        student = {t: batch[t].clone().requires_grad_() for t in OBJECTIVES[name].tensors if t in DIFFERENTIABLE}
        call(name, batch | student | {teacher: leaf}).backward()
        if name in BOTH_SIDES_LEARN:
            assert bool((leaf.grad != 0).any())
        else:
            assert leaf.grad is None or not bool(leaf.grad.any())


@every_objective
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_are_refused_by_name(name, bad):
    """The message names the objective and the tensor: a NaN that passes ruins a student silently."""
    for tensor in floating_inputs(name):
        batch = sample(4, full=True)
        broken = batch[tensor].clone()
        broken[0, 2] = bad
        if tensor == "batch_teacher_scores":
            broken = torch.full_like(broken, bad)
        if name == "cprd" and tensor == "query_embeddings":
            continue  # only with a queue, which test_cprd brings
        with pytest.raises(ObjectiveError, match=rf"^{name}: .*{tensor}"):
            call(name, batch | {tensor: broken}, **OPTIONS_THAT_READ.get(name, {}))


@every_objective
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name, dtype):
    """The loss of half-precision scores is the float32 loss of those same numbers, not a half-precision softmax."""
    half = {k: v.to(dtype) if v.is_floating_point() else v for k, v in sample(5, torch.float32).items()}
    full = {k: v.float() if v.is_floating_point() else v for k, v in half.items()}
    loss = call(name, half)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, call(name, full))


def options_of(name):
    """The defaults, and every other choice of each parameter that is one of several words, a flag or a small number."""
    info = OBJECTIVES[name]
    found = [{}]
    for parameter in sorted(info.parameters):
        annotation = info.term.model_fields[parameter].annotation
        words = typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()
        found += [{parameter: word} for word in words]
        if annotation is bool:
            found += [{parameter: True}]
    return found + MORE_OPTIONS.get(name, [])


MORE_OPTIONS = {
    "cprd": [{"max_valid": 2}, {"valid_threshold": 0.5}, {"valid_margin": 2.0}],
    "info_nce": [
        {"directions": ("query_to_document", "document_to_query", "query_to_query", "document_to_document")},
        {"teacher_margin": 0.5},
        {"label_smoothing": 0.1},
        {"hardness_mode": "hard_negatives", "hardness_strength": 5.0},
    ],
    "binary_kl": [{"probability_clamp": 1e-8}],
    "binary_kl_norm": [{"probability_clamp": 1e-8}],
    "ranknet": [{"top_k": 3}, {"tie_margin": 1.0}],
    "lambda_loss": [{"top_k": 3}],
}


@pytest.mark.parametrize(
    ("name", "options"), [(n, o) for n in NAMES for o in options_of(n)], ids=lambda value: str(value).replace(" ", "")
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_extreme_scores_stay_finite(name, options, dtype):
    """+-1e4 over a temperature of .05 is 2e5, far beyond what exp can take."""
    batch = sample(6, torch.float32)
    signs = torch.where(batch["batch_scores"] > 0, 1e4, -1e4)
    batch["batch_scores"] = signs
    batch["teacher_scores"] = torch.where(batch["teacher_scores"] > 0, 1e4, -1e4)
    batch = completed(batch)
    for embeddings in ("query_embeddings", "document_embeddings"):
        batch[embeddings] = batch[embeddings] * 100  # dot products of +-1e4
    batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
    loss, gradients = value_and_gradients(name, batch, **options)
    assert bool(torch.isfinite(loss))
    for tensor, gradient in gradients.items():
        assert bool(torch.isfinite(gradient).all()), tensor


@pytest.mark.parametrize("name", LIST_OBJECTIVES)
def test_padding_has_no_influence_and_gets_no_gradient(name):
    batch = sample(7)
    padding = ~batch["mask"]
    clean = value_and_gradients(name, batch)
    spoiled = {t: batch[t].masked_fill(padding, math.nan) for t in ("student_scores", "teacher_scores") if t in batch}
    dirty = value_and_gradients(name, batch | spoiled)
    assert torch.equal(clean[0], dirty[0])
    for tensor, gradient in clean[1].items():
        assert torch.equal(gradient, dirty[1][tensor])
    if "student_scores" in dirty[1]:
        assert not bool(dirty[1]["student_scores"][padding].any())


@every_objective
def test_nothing_to_learn_from_is_exactly_zero_with_zero_gradient(name):
    """Zero and not NaN, and still attached, so that a sum of terms can go backward."""
    batch = sample(8)
    batch["positive"] = torch.full_like(batch["positive"], -1)
    batch["positives"] = torch.zeros_like(batch["positives"])
    if OBJECTIVES[name].term.LEARNS_FROM == "lists":
        batch["mask"] = torch.zeros_like(batch["mask"])
    loss, gradients = value_and_gradients(name, completed(batch))
    assert loss.item() == 0
    for gradient in gradients.values():
        assert not bool(gradient.any())


@pytest.mark.parametrize("name", OWN_LIST_ONLY)
def test_a_row_with_a_single_candidate_adds_nothing(name):
    batch = sample(9)
    batch["mask"][0, 1:] = False
    _, gradients = value_and_gradients(name, completed(batch))
    assert not bool(gradients["student_scores"][0].any())
    assert bool(gradients["student_scores"][2].any())


@pytest.mark.parametrize(
    "name", [n for n in OWN_LIST_ONLY if n != "cprd"]
)  # cprd of one candidate is 0, by its golden file
def test_lists_of_one_column_are_refused(name):
    batch = {t: v[:, :1] if axes(t)[1:] == ("candidates",) else v for t, v in sample(10).items()}
    batch["positive"] = torch.zeros_like(batch["positive"])
    with pytest.raises(ObjectiveError, match=rf"^{name}: .*1 candidate"):
        call(name, batch)


@every_objective
@pytest.mark.parametrize("axis", ["queries", "candidates", "documents"])
def test_order_does_not_matter(name, axis):
    """Candidates come in mined order, documents as they are met, queries as the stream has them."""
    if name in RANDOM_DRAWS and axis == "queries":
        pytest.skip("draws are by the query's place")
    if name == "m3_kd" and axis == "candidates":
        pytest.skip("it visits candidates in list order: earlier ones are masked for later ones")
    batch = sample(11)
    size = {"queries": len(batch["mask"]), "candidates": batch["mask"].shape[1]}.get(axis, batch["scored"].shape[1])
    order = torch.randperm(size, generator=torch.Generator().manual_seed(1))
    straight, mixed = value_and_gradients(name, batch), value_and_gradients(name, reordered(batch, axis, order))
    torch.testing.assert_close(mixed[0], straight[0], rtol=1e-9, atol=1e-11)
    for tensor, gradient in straight[1].items():
        expected = gradient.index_select(axes(tensor).index(axis), order) if axis in axes(tensor) else gradient
        torch.testing.assert_close(mixed[1][tensor], expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", OWN_LIST_ONLY)
def test_no_query_leaks_into_anothers_list(name):
    """Other rows may change how much a row weighs in a mean, never in which direction it learns."""
    batch = sample(12)
    other = sample(13)
    changed = {t: v.clone() for t, v in batch.items()}
    for tensor in ("student_scores", "teacher_scores"):
        changed[tensor][1:] = other[tensor][1:]
    before = value_and_gradients(name, batch)[1]["student_scores"][0]
    after = value_and_gradients(name, changed)[1]["student_scores"][0]
    torch.testing.assert_close(after / after.norm(), before / before.norm(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in SUMS_OVER_THE_BATCH])
def test_a_batch_of_one_query_is_the_whole_batch_of_that_query(name):
    """Repeating a query changes nothing: reductions are means, so losses compare across batch sizes."""
    one, many = (first_query(sample(14), times=times) for times in (1, 4))
    torch.testing.assert_close(call(name, many), call(name, one), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", sorted(SUMS_OVER_THE_BATCH))
def test_the_exceptions_to_that_are_exceptions(name):
    one, many = (first_query(sample(14), times=times) for times in (1, 4))
    assert not torch.isclose(call(name, many), call(name, one), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(ORDER_ONLY & set(NAMES)))
@pytest.mark.parametrize(
    "transform", [lambda t: t.exp(), lambda t: 100 * t - 7, lambda t: t**3], ids=["exp", "affine", "cube"]
)
def test_only_the_teachers_order_matters(name, transform):
    """Any increasing map of teacher scores: bitwise the same loss and gradient."""
    batch = sample(15)
    before = value_and_gradients(name, batch)
    moved = transform(batch["teacher_scores"])
    after = value_and_gradients(name, completed(batch | {"teacher_scores": moved}) | {"teacher_scores": moved})
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1]["student_scores"], after[1]["student_scores"])


NOT_SHIFT_INVARIANT = {"binary_kl", "binary_kl_norm"}
"""Pairwise probabilities: an offset per query is what they learn."""


@pytest.mark.parametrize("name", [n for n in OWN_LIST_ONLY if n not in NOT_SHIFT_INVARIANT])
def test_each_rows_gradient_sums_to_zero(name):
    """List losses must not teach the student an offset per query."""
    batch = sample(16)
    loss, gradients = value_and_gradients(name, batch)
    sums = gradients["student_scores"].sum(dim=1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-9)
    shifted = call(name, batch | {"student_scores": batch["student_scores"] + 0.7})
    torch.testing.assert_close(shifted, loss, rtol=1e-8, atol=1e-9)
