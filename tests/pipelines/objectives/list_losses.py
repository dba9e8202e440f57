"""List losses under one signature, on random batches with ragged, tied and unlabelled lists, for property tests."""

import pytest
import torch

from pipelines.objectives.adr_mse import adr_mse_loss
from pipelines.objectives.approx_ndcg import approx_ndcg_loss
from pipelines.objectives.ar2 import ar2_loss
from pipelines.objectives.binary_kl import binary_kl_loss, binary_kl_norm_loss
from pipelines.objectives.lambda_loss import lambda_loss
from pipelines.objectives.list_mle import list_mle_loss, p_list_mle_loss
from pipelines.objectives.list_net import list_net_loss
from pipelines.objectives.m3_kd import m3_kd_loss
from pipelines.objectives.mw import mw_loss
from pipelines.objectives.ranknet import ranknet_loss
from pipelines.objectives.rocketqa_v2 import rocketqa_v2_loss
from pipelines.objectives.z_loss import z_loss

OTHERS = 3
"""Documents of the batch that are in no list, for the losses that look beyond the list."""


def draw(seed, size, *, untied=False):
    """Cosines and logits on coarse grids, so with ties; lists of any length, also 0; a positive here and there.

    Eighths, to which halves are added without rounding: sums neither part nor join what is tied.
    """
    generator = torch.Generator().manual_seed(seed)
    student = torch.randint(-8, 9, size, generator=generator).double() / 8
    teacher = torch.randint(-4, 5, size, generator=generator).double()
    if untied:
        student, teacher = (x + torch.rand(size, generator=generator).double() * 0.05 for x in (student, teacher))
    mask = torch.rand(size, generator=generator) < torch.rand((), generator=generator)
    # An order of the columns in which the real ones come first: the first is the positive where there is one.
    first = (torch.rand(size, generator=generator) + mask).argmax(dim=1)
    wanted = torch.rand(size[0], generator=generator) < 0.7
    return {
        "student": student,
        "teacher": teacher,
        "mask": mask,
        "positive": torch.where(mask.any(dim=1) & wanted, first, -1),
        "others": torch.randint(-8, 9, (size[0], OTHERS), generator=generator).double() / 8,
    }


def beyond_the_list(values):
    """Batch scores whose first columns are the lists; padding is a document that the query has nothing against."""
    scores = torch.cat([torch.where(values["mask"], values["student"], 0), values["others"]], dim=1)
    relevant = torch.cat([~values["mask"], torch.zeros_like(values["others"], dtype=torch.bool)], dim=1)
    return scores, relevant


def m3_kd(values):
    scores, relevant = beyond_the_list(values)
    columns = torch.arange(values["mask"].shape[1]).expand_as(values["mask"])
    return m3_kd_loss(scores, values["teacher"], values["mask"], columns=columns, relevant=relevant)


def mw(values, **options):
    scores, relevant = beyond_the_list(values)
    return mw_loss(scores, values["positive"], relevant=relevant, **options)


def of_list(function, **options):
    return lambda v: function(v["student"], v["teacher"], v["mask"], **options)


def with_positive(function, **options):
    return lambda v: function(v["student"], v["teacher"], v["mask"], positive=v["positive"], **options)


LOSSES = {
    "ranknet": of_list(ranknet_loss),
    "ranknet top 2": of_list(ranknet_loss, top_k=2),
    "ranknet weighted": of_list(ranknet_loss, weight_by_difference=True),
    "list_mle": of_list(list_mle_loss),
    "p_list_mle": of_list(p_list_mle_loss),
    "lambda_loss": of_list(lambda_loss),
    "lambda_loss over pairs": of_list(lambda_loss, weighting="none", reduction="mean_over_pairs"),
    "lambda_loss ndcg_loss1": of_list(lambda_loss, weighting="ndcg_loss1", top_k=3),
    "adr_mse": of_list(adr_mse_loss),
    "approx_ndcg": of_list(approx_ndcg_loss),
    "list_net": of_list(list_net_loss),
    "binary_kl": of_list(binary_kl_loss, temperature=0.5, bias=-1.0),
    "binary_kl_norm": of_list(binary_kl_norm_loss, temperature=0.5, bias=-1.0),
    "m3_kd": m3_kd,
    "rocketqa_v2": with_positive(rocketqa_v2_loss),
    "rocketqa_v2 code": with_positive(rocketqa_v2_loss, form="code"),
    "ar2": with_positive(ar2_loss),
    "z_loss": lambda v: z_loss(v["student"], v["mask"], positive=v["positive"], b=1.0),
    "mw": mw,
    "mw over pairs": lambda v: mw(v, reduction="mean_over_pairs"),
}


def losses(*names):
    """Parametrises a test over them, each by its name."""
    assert names
    assert set(names) <= set(LOSSES)
    return pytest.mark.parametrize("name", names)


def without(*names):
    assert set(names) <= set(LOSSES)
    return [name for name in LOSSES if name not in names]


def value_and_gradient(name, values):
    student = values["student"].clone().requires_grad_()
    loss = LOSSES[name](values | {"student": student})
    loss.backward()
    return loss.detach(), student.grad


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


def rows(values, chosen):
    return {name: value[chosen] for name, value in values.items()}
