"""MW compares every positive with every negative of the batch, exactly, and without ever holding all pairs.

Why: the plain way needs queries times queries times documents numbers, which is what makes the loss unusable at batch
sizes where it is meant to work. So what the largest tensor is, is tested, and that cutting into chunks changes nothing.
"""

import math

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.errors import ObjectiveError
from pipelines.objectives.mw import mw_loss


class LargestTensor(TorchDispatchMode):
    """Remembers the largest number of elements that any operation returned, backward included."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def batch(queries=4, documents=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(queries, documents, generator=generator, dtype=torch.float64).requires_grad_()
    positive = torch.randperm(documents, generator=generator)[:queries]
    relevant = torch.rand(queries, documents, generator=generator) < 0.2
    return scores, positive, relevant


def test_mw_is_the_formula_with_relevant_documents_and_a_query_without_a_positive():
    scores, positive, relevant = batch()
    positive[2] = -1
    negatives = [scores[j, n].item() for j in (0, 1, 3) for n in range(9) if n != positive[j] and not relevant[j, n]]
    positives = [scores[i, positive[i]].item() for i in (0, 1, 3)]
    total = sum(math.log1p(math.exp((n - p) / 0.1)) for p in positives for n in negatives)
    settings = {"relevant": relevant, "temperature": 0.1}
    assert mw_loss(scores, positive, **settings).item() == pytest.approx(total / 3, rel=1e-9)
    mean = mw_loss(scores, positive, reduction="mean_over_pairs", **settings)
    assert mean.item() == pytest.approx(total / (3 * len(negatives)), rel=1e-9)
    mean.backward()
    assert not bool(scores.grad[2].any())


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 8, 1000])
def test_the_chunk_size_changes_neither_loss_nor_gradient(chunk_size):
    scores, positive, relevant = batch(8, 20)
    whole = mw_loss(scores, positive, relevant=relevant, chunk_size=8)
    (expected,) = torch.autograd.grad(whole, scores)
    loss = mw_loss(scores, positive, relevant=relevant, chunk_size=chunk_size)
    (gradient,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(loss, whole, rtol=1e-13, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


def test_its_gradient_is_that_of_the_plain_double_sum():
    scores, positive, relevant = batch(6, 15)
    (gradient,) = torch.autograd.grad(mw_loss(scores, positive, relevant=relevant, chunk_size=4) * 3, scores)
    negative = ~relevant
    negative[torch.arange(6), positive] = False
    own = scores.gather(1, positive.unsqueeze(1))
    plain = -functional.logsigmoid((own - scores[negative].unsqueeze(0)) / 0.05).sum() / 6
    (expected,) = torch.autograd.grad(plain * 3, scores)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("chunk_size", "queries"), [(1, 16), (1, 32), (4, 16), (4, 32)])
def test_memory_grows_with_the_batchs_scores_and_not_with_its_pairs(chunk_size, queries):
    """No operation, forward or backward, makes a tensor larger than `chunk_size` times the batch's scores."""
    scores, positive, _ = batch(queries, 8 * queries)
    with LargestTensor() as seen:
        mw_loss(scores, positive, chunk_size=chunk_size).backward()
    assert seen.elements <= chunk_size * scores.numel()
    with LargestTensor() as everything:
        mw_loss(scores, positive, chunk_size=queries).backward()
    assert everything.elements == queries * (scores.numel() - queries), "the measure sees the pairs where they exist"


def test_an_offset_of_one_query_costs_and_one_of_all_does_not():
    """InfoNCE cannot see the first; that is what this loss is for."""
    scores, positive, _ = batch()
    loss = mw_loss(scores, positive)
    torch.testing.assert_close(mw_loss(scores + 0.7, positive), loss, rtol=1e-9, atol=0)
    one = torch.tensor([[0.7], [0.0], [0.0], [0.0]], dtype=torch.float64)
    assert abs(mw_loss(scores + one, positive) - loss) > 0.1


def test_only_the_mean_over_pairs_stays_the_same_when_the_batch_grows():
    scores, positive, relevant = batch()
    doubled = scores.repeat(2, 1), positive.repeat(2)
    for reduction, factor in (("mean_over_pairs", 1), ("paper_sum", 2)):
        settings = {"reduction": reduction}
        small = mw_loss(scores, positive, relevant=relevant, **settings)
        large = mw_loss(*doubled, relevant=relevant.repeat(2, 1), **settings)
        torch.testing.assert_close(large, factor * small, rtol=1e-12, atol=0)


def test_a_batch_without_any_negative_is_zero_with_zero_gradient():
    scores, positive, _ = batch()
    for places, relevant in (
        (positive, torch.ones(4, 9, dtype=torch.bool)),
        (torch.full((4,), -1), torch.zeros(4, 9, dtype=torch.bool)),
    ):
        for reduction in ("paper_sum", "mean_over_pairs"):
            loss = mw_loss(scores, places, relevant=relevant, reduction=reduction)
            (gradient,) = torch.autograd.grad(loss, scores)
            assert loss.item() == 0
            assert not bool(gradient.any())


def test_a_second_derivative_is_refused_rather_than_incomplete():
    """The first one is summed without a graph, so a graph through it would know the outer factor only."""
    scores, positive, _ = batch()
    (gradient,) = torch.autograd.grad(mw_loss(scores, positive).square(), scores, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, p: mw_loss(s[:, :1], p), "fewer than 2 documents"),
        (lambda s, p: mw_loss(s[0], p), "queries, documents"),
        (lambda s, p: mw_loss(s.long(), p), "floating"),
        (lambda s, p: mw_loss(s, p + 9), r"positive_document\[0\]"),
        (lambda s, p: mw_loss(s, p[:2]), "positive_document must be int64"),
        (lambda s, p: mw_loss(s, p, relevant=s > 2, chunk_size=0), "chunk_size must be at least 1, got 0"),
        (lambda s, p: mw_loss(s, p, relevant=s), "relevant must be bool"),
        (lambda s, p: mw_loss(s, p, reduction="mean"), "unknown reduction 'mean'"),
        (lambda s, p: mw_loss(s, p, temperature=0), "temperature"),
        (lambda s, p: mw_loss(s / 0, p), "batch_scores has"),
    ],
)
def test_inputs_that_would_give_a_wrong_loss_are_refused(call, message):
    scores, positive, _ = batch()
    with pytest.raises(ObjectiveError, match=rf"^mw: .*{message}"):
        call(scores.detach(), positive)
