"""SimANS: draw the negatives that score near the positive, neither the trivial ones nor the likely false ones.

    paper:     w_n = exp( -a (s_n - s_pos - b)^2 )
    code:      w_n = exp( -a (s_n - s_pos + b)^2 )
    ms_marco:  w_n = exp( -a |s_n - s_pos| )
    p_n = w_n / sum of w

No loss but the sampler in front of one (`training.negatives`). Everything stays in logarithms: a list whose
negatives are all far from the positive still has probabilities, where exp alone would give 0 / 0.

Forms: the sign of `b` differs between the README (`paper`, subtracted) and the code that was run (`code`, added); the
MS MARCO script uses the absolute difference, with a = 0.5, and no `b`.

Source: EMNLP 2022, official code microsoft/SimXNS, `SimANS/utils/util_wiki.py`. It repeats draws with replacement until
n are distinct, which is drawing one after the other without replacement, done here in one step with Gumbel noise. The
paper weighs by the retriever's scores; a job's lists hold the teacher's, and those are used.

Use when: lists are long (tens of candidates) and hold both false negatives at the top and trivial ones at the bottom.
Scripts of the authors: a 0.5 and b 1 for Natural Questions, b 0 for TriviaQA.

Reported: MS MARCO MRR@10 39.5 of AR2 to 40.9 with SimANS (as quoted by DupMAE).

Edges: fewer negatives than asked for are all taken; equal scores have equal probability.
"""

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipelines.errors import ObjectiveError

__all__ = ["draw_simans", "simans_weights"]

Form = Literal["paper", "code", "ms_marco"]


def simans_weights(
    negative_scores: npt.ArrayLike,
    positive_score: float,
    *,
    a: float = 0.5,
    b: float = 0.0,
    form: Form = "paper",
) -> npt.NDArray[np.float64]:
    """Probability of each negative to be the next one drawn.

    Args:
        negative_scores: [negatives], on the scale of `positive_score`.
        positive_score: of the query's positive.
        a: how sharply weights fall with the distance; 0 draws uniformly.
        b: where they peak: that far above the positive's score (`paper`) or below it (`code`).
        form: which weight, see above.

    Returns:
        float64 [negatives], sums to 1; empty for an empty list.

    Raises:
        ObjectiveError: not one row of finite scores, an impossible parameter.
    """
    logits = _log_weights(negative_scores, positive_score, a=a, b=b, form=form)
    if not len(logits):
        return logits
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def draw_simans(
    negative_scores: npt.ArrayLike,
    positive_score: float,
    *,
    count: int,
    rng: np.random.Generator,
    a: float = 0.5,
    b: float = 0.0,
    form: Form = "paper",
) -> npt.NDArray[np.int64]:
    """Draw `count` distinct negatives one after the other, each by the weights of those that are left.

    Args:
        negative_scores: as in `simans_weights`, like the others.
        positive_score: of the query's positive.
        count: how many; fewer where there are not as many.
        rng: where chance comes from; one number is drawn per negative, whatever `count` is.
        a: see `simans_weights`.
        b: see `simans_weights`.
        form: see `simans_weights`.

    Returns:
        int64 places in `negative_scores`, ascending.

    Raises:
        ObjectiveError: as `simans_weights`; a negative `count`.
    """
    if count < 0:
        raise ObjectiveError(f"simans: count must not be negative, got {count}")
    logits = _log_weights(negative_scores, positive_score, a=a, b=b, form=form)
    # The largest of logit + Gumbel noise is a draw from the softmax, the next largest one from what is left, and so on.
    keys = logits + rng.gumbel(size=len(logits))
    return np.sort(np.argsort(-keys, kind="stable")[:count]).astype(np.int64)


def _log_weights(
    negative_scores: npt.ArrayLike, positive_score: float, *, a: float, b: float, form: Form
) -> npt.NDArray[np.float64]:
    scores = np.asarray(negative_scores, dtype=np.float64)
    if scores.ndim != 1:
        raise ObjectiveError(f"simans: negative_scores must be one row, got shape {scores.shape}")
    if not (np.isfinite(scores).all() and math.isfinite(positive_score)):
        raise ObjectiveError("simans: scores must be finite numbers")
    if not 0 <= a < math.inf:
        raise ObjectiveError(f"simans: a must be a finite number >= 0, got {a}")
    if not math.isfinite(b):
        raise ObjectiveError(f"simans: b must be a finite number, got {b}")
    distance = scores - float(positive_score)
    match form:
        case "paper":
            return np.asarray(-a * np.square(distance - b))
        case "code":
            return np.asarray(-a * np.square(distance + b))
        case "ms_marco":
            if b:
                raise ObjectiveError(f"simans: form ms_marco knows no b, got {b}")
            return np.asarray(-a * np.abs(distance))
    raise ObjectiveError(f"simans: unknown form {form!r}")
