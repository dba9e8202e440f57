"""What all losses that match the teacher's values share, padded or not; ListNet's formula and epsilon.

Why: golden files have neither padding nor queries without a positive, and every batch of a job has both. So each loss
must say the same with columns that hold nothing as without them.
"""

import math

import pytest
import torch
from ragged_lists import POSITIVE, close, ragged, rows, sigmoid, softmax

from pipelines.errors import ObjectiveError
from pipelines.objectives.ar2 import ar2_code_compat_loss, ar2_loss
from pipelines.objectives.binary_kl import binary_kl_loss, binary_kl_norm_loss
from pipelines.objectives.list_kl import list_kl_loss
from pipelines.objectives.list_net import list_net_loss
from pipelines.objectives.margin_mse import margin_mse_loss
from pipelines.objectives.ranker_loss import ranker_loss
from pipelines.objectives.rocketqa_v2 import rocketqa_v2_loss
from pipelines.objectives.z_loss import z_loss

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
