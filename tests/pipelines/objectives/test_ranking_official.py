"""Our defaults against the installed sentence-transformers, where the golden files hold an older commit of it.

Why: it has since moved to the papers' forms, and so have we; a later change there should be seen here.
"""

import pytest
import torch
from plain_ranking import (
    TEMPERATURE,
)

from pipelines.objectives.adr_mse import adr_mse_loss
from pipelines.objectives.lambda_loss import lambda_loss
from pipelines.objectives.list_mle import p_list_mle_loss
from pipelines.objectives.ranknet import ranknet_loss


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
