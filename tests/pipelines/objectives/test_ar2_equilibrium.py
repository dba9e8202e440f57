"""The two players of AR2 on a game whose solution is known: both losses lead there, from anywhere.

One query, two negatives A and B. The retriever's move is p, its probability of A. The ranker has one unit of effort:
u of it pushes A's logit to -2u, the rest pushes B's to -(1 - u); the positive's is 0. It minimises
p f(-2u) + (1 - p) f(u - 1) with f(t) = log(1 + e^t), its loss on [positive, negative] lists drawn by p; the retriever
maximises the same. At the solution the retriever is indifferent, -2u = u - 1, and the ranker's slopes balance,
2p f' = (1 - p) f': so u = 1/3 and p = 1/3.
"""

import pytest
import torch
from torch import Tensor

from pipelines.objectives.ar2 import ar2_loss
from pipelines.objectives.list_kl import list_kl_loss
from pipelines.objectives.ranker_loss import ranker_loss

POSITIVE = torch.tensor([0])


def logits(effort: Tensor) -> Tensor:
    """[1, 3]: of the positive, A, B."""
    return torch.stack([torch.zeros_like(effort), -2 * effort, effort - 1])[None]


def retriever(odds: Tensor) -> Tensor:
    """[1, 3] scores whose softmax over A and B is sigmoid(odds), at temperature 1."""
    return torch.stack([torch.zeros_like(odds), odds, torch.zeros_like(odds)])[None]


def ranker_s_expected_loss(effort: Tensor, p: Tensor) -> Tensor:
    both = logits(effort)
    lists = torch.cat([both[:, [0, 1]], both[:, [0, 2]]])
    return torch.stack([p, 1 - p]) @ torch.stack([ranker_loss(row[None], POSITIVE) for row in lists])


def play(*, odds: float, effort: float, steps: int = 800, regulariser: float = 0.0) -> tuple[float, float]:
    """Both take turns, with steps that shrink; returns (p, u) at the end."""
    s = torch.tensor(odds, dtype=torch.float64, requires_grad=True)
    u = torch.tensor(effort, dtype=torch.float64, requires_grad=True)
    for step in range(steps):
        rate = 1.0 / (1 + step / 80)
        (slope,) = torch.autograd.grad(ranker_s_expected_loss(u, s.detach().sigmoid()), u)
        u.data = (u.data - 0.5 * rate * slope).clamp(0, 1)
        loss = ar2_loss(retriever(s), logits(u.detach()), positive=POSITIVE, temperature=1.0)
        if regulariser:
            loss = loss + regulariser * list_kl_loss(
                retriever(s), logits(u.detach()), temperature=1.0, teacher_temperature=1.0
            )
        (slope,) = torch.autograd.grad(loss, s)
        s.data -= 4 * rate * slope
    return float(s.detach().sigmoid()), float(u.detach())


@pytest.mark.parametrize(("odds", "effort"), [(2.0, 0.9), (-2.0, 0.1), (0.0, 0.0), (3.0, 0.2)])
def test_both_players_end_where_neither_gains(odds: float, effort: float) -> None:
    assert play(odds=odds, effort=effort) == pytest.approx((1 / 3, 1 / 3), abs=0.01)


def test_a_retriever_that_is_not_answered_puts_all_on_the_harder_negative() -> None:
    """What the regulariser is for (section 4.4 of the paper): alone against a fixed ranker, its entropy goes to 0."""
    fixed = logits(torch.tensor(0.8, dtype=torch.float64))
    ends = []
    for weight in (0.0, 1.0):
        s = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
        for _ in range(1000):
            loss = ar2_loss(retriever(s), fixed, positive=POSITIVE, temperature=1.0)
            loss = loss + weight * list_kl_loss(retriever(s), fixed, temperature=1.0, teacher_temperature=1.0)
            (slope,) = torch.autograd.grad(loss, s)
            s.data -= slope
        p = s.detach().sigmoid()
        ends.append(float(-(p * p.log() + (1 - p) * (1 - p).log())))
    assert ends[0] < 0.05
    assert ends[1] > 0.3
