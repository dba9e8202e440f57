"""Which unlabelled queries to ask the teacher about next: those whose loss a small head expects to be high.

Enters: embeddings and losses of the queries the student has learned from, embeddings of those not asked about yet.
Leaves: rows of the latter, and how well the head ranked losses it had not seen.

    p(e) = w . (e - mean) / deviation      fitted with L = mean over pairs with y_j > y_i of - log sigmoid(p_j - p_i)

The relative form of HPM (arXiv 2312.13714, see `objectives.loss_prediction`): the order of the losses is what a choice
needs. The head is linear and starts at zero, so the fit is convex and has one answer. A fifth of the observed queries
is held out; without a positive rank correlation there the choice is random, and says so. Even a good head gets only
`guided_share` of the choices: the rest stays a random sample, which no wrong belief can keep out of sight.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipelines.errors import ObjectiveError
from pipelines.objectives.loss_prediction import guided_share, loss_prediction_loss

__all__ = ["LossPredictor", "NextQueries", "choose_queries", "fit_loss_predictor", "next_queries"]

FEWEST_OBSERVED = 20
"""Below that a fifth is less than four queries, and their rank correlation says nothing."""
_STEPS = 200
_RATE = 0.02
_DECAY = 0.5
_GROUP = 64  # pairs are formed within groups, drawn anew at each step: n * 64 of them instead of n * n
_BLOCK = 65536


@dataclass(frozen=True, eq=False)
class LossPredictor:
    """A fitted head."""

    weight: Tensor
    """float32 [D], on standardised embeddings."""
    mean: Tensor
    deviation: Tensor
    correlation: float
    """Spearman's, between predicted and observed losses of the held-out fifth; 0 where either is constant."""

    def predict(self, embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Expected loss float32 [m] of embeddings [m, D]; the order means something, the unit does not."""
        predicted = np.empty(len(embeddings), dtype=np.float32)
        for start in range(0, len(embeddings), _BLOCK):
            block = torch.from_numpy(embeddings[start : start + _BLOCK]).float()
            predicted[start : start + _BLOCK] = (((block - self.mean) / self.deviation) @ self.weight).numpy()
        return predicted


@dataclass(frozen=True, eq=False)
class NextQueries:
    """A choice and its reasons."""

    rows: npt.NDArray[np.int64]
    """Of the pool: first those of the highest predicted loss, then the random ones."""
    guided: int
    """How many of them follow the prediction."""
    correlation: float | None
    """See `LossPredictor`; None if no head was fitted."""
    reason: str
    """For the user, in one sentence."""


def fit_loss_predictor(
    embeddings: npt.NDArray[np.float32], losses: npt.NDArray[np.float32], *, seed: int
) -> LossPredictor:
    """Fit on four fifths of the observed queries, measure on the last.

    Args:
        embeddings: [n, D], of queries.
        losses: [n], observed; any unit.
        seed: of the split and of the groups. No global generator is read or moved.

    Raises:
        ObjectiveError: shapes disagree, fewer than `FEWEST_OBSERVED` queries, NaN or infinite values.
    """
    if embeddings.ndim != 2 or losses.shape != (len(embeddings),) or len(losses) < FEWEST_OBSERVED:
        raise ObjectiveError(
            f"loss_predictor: needs embeddings [n, D] and losses [n] of at least {FEWEST_OBSERVED} queries, got "
            f"{embeddings.shape} and {losses.shape}"
        )
    if not (np.isfinite(embeddings).all() and np.isfinite(losses).all()):
        raise ObjectiveError("loss_predictor: embeddings or losses hold NaN or infinity")
    order = np.random.default_rng((seed, 0)).permutation(len(losses))
    held_out, fitted = order[: len(order) // 5], order[len(order) // 5 :]
    x, y = torch.from_numpy(embeddings[fitted]).float(), torch.from_numpy(losses[fitted]).float()
    mean, deviation = x.mean(dim=0), x.std(dim=0).clamp(min=1e-6)
    weight = _fit((x - mean) / deviation, y, np.random.default_rng((seed, 1)))
    head = LossPredictor(weight, mean, deviation, 0.0)
    correlation = _spearman(head.predict(embeddings[held_out]), losses[held_out])
    return LossPredictor(weight, mean, deviation, correlation)


def choose_queries(
    predicted: npt.NDArray[np.floating], count: int, share: float, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """`count` rows of `predicted` ([m]), or all if there are fewer; none twice.

    The first round(share * count) have the highest predicted losses, highest first, ties in row order; the others are
    drawn evenly from the rest.
    """
    if count < 0 or not 0 <= share <= 1:
        raise ValueError(f"count {count} must be at least 0 and share {share} in [0, 1]")
    count = min(count, len(predicted))
    order = np.argsort(-predicted, kind="stable")
    guided = round(share * count)
    return np.concatenate([order[:guided], rng.permutation(order[guided:])[: count - guided]]).astype(np.int64)


def next_queries(
    observed: npt.NDArray[np.float32],
    losses: npt.NDArray[np.float32],
    pool: npt.NDArray[np.float32],
    *,
    count: int,
    round_number: int,
    rounds: int,
    seed: int,
) -> NextQueries:
    """Which queries of the pool the teacher is asked about in a round; the same answer for the same arguments.

    Args:
        observed: [n, D] embeddings of queries whose losses are known; n = 0 in round 0.
        losses: [n].
        pool: [m, D] embeddings of the queries to choose from; in round 0 only their number is read.
        count: how many to choose.
        round_number: from 0.
        rounds: of the job, for the share of guided choices.
        seed: of the job.
    """
    rng = np.random.default_rng((seed, 3, round_number))

    def at_random(reason: str, correlation: float | None = None) -> NextQueries:
        return NextQueries(choose_queries(np.zeros(len(pool)), count, 0.0, rng), 0, correlation, reason)

    if round_number == 0:
        return at_random("the first round knows no losses: all are drawn at random")
    if len(losses) < FEWEST_OBSERVED:
        return at_random(f"{len(losses)} observed losses are fewer than {FEWEST_OBSERVED}: all are drawn at random")
    head = fit_loss_predictor(observed, losses, seed=seed + round_number)
    if head.correlation <= 0:
        return at_random(
            f"predicted and observed losses of held-out queries correlate by {head.correlation:.2f}: the prediction is "
            "not used, all are drawn at random",
            head.correlation,
        )
    share = guided_share(round_number, rounds)
    rows = choose_queries(head.predict(pool), count, share, rng)
    guided = round(share * len(rows))
    return NextQueries(
        rows,
        guided,
        head.correlation,
        f"{guided} of {len(rows)} have the highest predicted loss, the others are random; predicted and observed "
        f"losses of held-out queries correlate by {head.correlation:.2f}",
    )


def _fit(x: Tensor, y: Tensor, rng: np.random.Generator) -> Tensor:
    """[D]; the whole batch in every step."""
    weight = nn.Parameter(torch.zeros(x.shape[1]))
    optimizer = torch.optim.AdamW([weight], lr=_RATE, weight_decay=_DECAY)
    size = min(_GROUP, len(y))
    places = -(-len(y) // size) * size
    mask = (torch.arange(places) < len(y)).view(-1, size)
    for _ in range(_STEPS):
        rows = torch.from_numpy(np.resize(rng.permutation(len(y)), places)).view(-1, size)
        predicted = (x @ weight)[rows]
        torch.autograd.backward(loss_prediction_loss(predicted, y[rows], mask, form="relative"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return weight.detach()


def _spearman(predicted: npt.NDArray[np.float32], observed: npt.NDArray[np.float32]) -> float:
    from scipy.stats import rankdata

    ranks = np.stack([rankdata(predicted), rankdata(observed)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(ranks, axis=1)
    return float(ranks[0] @ ranks[1] / norms.prod()) if norms.all() else 0.0
