"""Is a difference between two systems more than luck of the queries?

Enters: two systems' values on the same queries. Leaves: mean difference and the p-value of a two-sided paired
permutation test: if the systems were equal, each query's difference might as well have had the other sign.
It assumes no distribution, which suits nDCG (bounded, many exact zeros), and is never undefined: equal
systems give p = 1. Source: Smucker, Allan and Carterette, CIKM 2007. It says nothing about other training
seeds.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipelines.errors import PipelineError

__all__ = ["PairedTest", "paired_test"]

_RESAMPLES = 9_999
_SEED = 20070706


@dataclass(frozen=True)
class PairedTest:
    """Outcome of a paired comparison of system a against system b.

    Attributes:
        mean_difference: mean over queries of a minus b.
        p_value: two-sided, in (0, 1]; not below 2 / 10,000 when the sign flips are sampled.
        num_queries: pairs compared.
        method: what was computed, for a reader.
    """

    mean_difference: float
    p_value: float
    num_queries: int
    method: str


def paired_test(a: Mapping[str, float], b: Mapping[str, float]) -> PairedTest:
    """Compare two systems query by query.

    Deterministic: all sign flips are enumerated where there are at most 9,999 of them (13 queries), else
    9,999 are drawn with a fixed seed over the queries in id order.

    Args:
        a: query id -> value of the first system.
        b: the same queries for the second.

    Raises:
        PipelineError: no queries, different queries, or a NaN.
    """
    if not a or a.keys() != b.keys():
        raise PipelineError(
            f"a paired test needs the same queries on both sides; got {len(a)} and {len(b)}, "
            f"{len(a.keys() & b.keys())} in common"
        )
    differences = np.array([a[query] - b[query] for query in sorted(a)], dtype=np.float64)
    if not np.isfinite(differences).all():
        raise PipelineError("a paired test got NaN or infinite values")
    exact = 2 ** len(differences) <= _RESAMPLES
    flips = "all sign flips" if exact else f"{_RESAMPLES:,} sampled sign flips"
    return PairedTest(
        mean_difference=float(differences.mean()),
        p_value=_sign_flip_p_value(differences),
        num_queries=len(differences),
        method=f"two-sided paired permutation test, {flips}",
    )


def _sign_flip_p_value(differences: NDArray[np.float64]) -> float:
    if len(differences) == 1:
        return 1.0  # both signs are equally extreme; scipy refuses a single observation
    outcome = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=1_000,
        alternative="two-sided",
        rng=np.random.default_rng(_SEED),
    )
    return float(outcome.pvalue)
