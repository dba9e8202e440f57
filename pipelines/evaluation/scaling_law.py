"""What would more data buy? A power law with a floor, fitted to measured errors, and how far it can be trusted.

    one factor:   err(n)    = E_inf + a * (n0 / n)^p
    two factors:  err(n, h) = E_inf + a * (n0 / n)^p * (h0 / h)^r

n is the number of teacher-scored pairs (or labels, or parameters), h for instance the negatives per query, err for
instance 1 - nDCG@10; n0 and h0 are a reference size, 1 unless given. Enters: sizes and errors of finished runs.
Leaves: the law, its spread over seeds, and its error on the largest run when fitted without it. The fit is bounded
(E_inf >= 0, a >= 0, exponents in (0, 10]), started from many places, and robust: a point off by more than a tenth of
the curve's range pulls linearly (Huber). Fewer than 5 sizes are refused: three parameters fit anything; show the raw
curve instead. A loss can keep improving along its law while the quality that users see stands still, so fit the
measure that matters.

Source: the form is that of arXiv 2109.07740 (scaling of translation models); the paper was not read in full.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

from pipelines.errors import PipelineError

__all__ = ["Extrapolation", "ScalingLaw", "bootstrap_scaling_law", "extrapolate_to_largest", "fit_scaling_law"]

_MIN_SIZES = 5
_MAX_EXPONENT = 10.0
_HUBER = 0.1
_TOLERANCE = 1e-12
_FLOORS = (0.0, 0.5, 0.95)
_EXPONENTS = (0.05, 0.3, 1.0, 3.0)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ScalingLaw:
    """A fitted law.

    Attributes:
        floor: E_inf, the error that no amount of data removes.
        amplitude: a, the removable error at the reference size.
        exponents: one per factor.
        reference: n0 (and h0).
        rms: root mean square residual over the points of the fit, in units of the error.
    """

    floor: float
    amplitude: float
    exponents: tuple[float, ...]
    reference: tuple[float, ...]
    rms: float

    def predict(self, sizes: ArrayLike) -> Floats:
        """Error at each of `sizes`, [points] or [points, factors]."""
        factors = _factors(sizes)
        if factors.shape[1] != len(self.exponents):
            raise PipelineError(f"the law has {len(self.exponents)} factor(s), got sizes with {factors.shape[1]}")
        shrink = np.log(np.asarray(self.reference) / factors) @ np.asarray(self.exponents)
        predicted: Floats = self.floor + self.amplitude * np.exp(shrink)
        return predicted


@dataclass(frozen=True)
class Extrapolation:
    """A law fitted without the largest runs, held to them.

    Attributes:
        law: fitted to the smaller sizes.
        largest: the size of the first factor that was held out.
        predicted: mean of the law over the points held out.
        measured: mean error of those points.
        relative_error: (predicted - measured) / measured; negative = the law promised too much.
    """

    law: ScalingLaw
    largest: float
    predicted: float
    measured: float
    relative_error: float


def fit_scaling_law(sizes: ArrayLike, errors: ArrayLike, *, reference: ArrayLike = 1.0) -> ScalingLaw:
    """Fit the law to measured errors. Errors that do not fall with size give an amplitude near 0.

    Args:
        sizes: [points] or [points, 2], above 0.
        errors: [points], or [points, seeds] whose mean over seeds is fitted; finite, at least 0.
        reference: size(s) at which `amplitude` is stated.

    Raises:
        PipelineError: fewer than 5 distinct sizes, a factor that never changes, sizes or errors out of range, errors
            that are all equal.
    """
    factors, measured = _points(sizes, errors)
    _require_sizes(factors, _MIN_SIZES)
    return _fit(factors, measured.mean(axis=1), _reference(reference, factors.shape[1]))


def bootstrap_scaling_law(
    sizes: ArrayLike,
    errors: ArrayLike,
    *,
    reference: ArrayLike = 1.0,
    resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the parameters when the seeds of the runs are drawn anew, with replacement.

    Args:
        sizes: as in `fit_scaling_law`.
        errors: [points, seeds], at least 2 seeds; a seed is drawn with all its points, for its runs share data.
        reference: as in `fit_scaling_law`.
        resamples: how many times.
        confidence: mass inside each interval.
        seed: of the drawing.

    Returns:
        `floor`, `amplitude`, `exponent_0` (and `exponent_1`) -> (low, high).

    Raises:
        PipelineError: as in `fit_scaling_law`; fewer than 2 seeds; an impossible parameter.
    """
    factors, measured = _points(sizes, errors)
    _require_sizes(factors, _MIN_SIZES)
    seeds = measured.shape[1]
    if seeds < 2:
        raise PipelineError(f"a bootstrap over seeds needs at least 2 seeds, got {seeds}")
    if resamples < 1 or not 0 < confidence < 1:
        raise PipelineError(f"needs resamples >= 1 and 0 < confidence < 1, got {resamples} and {confidence}")
    scale = _reference(reference, factors.shape[1])
    rng = np.random.default_rng(seed)
    near = _fit(factors, measured.mean(axis=1), scale).exponents
    draws = (measured[:, rng.integers(0, seeds, seeds)].mean(axis=1) for _ in range(resamples))
    laws = [_fit(factors, drawn, scale, exponents=[near]) for drawn in draws]
    values = {"floor": [law.floor for law in laws], "amplitude": [law.amplitude for law in laws]}
    values |= {f"exponent_{i}": [law.exponents[i] for law in laws] for i in range(factors.shape[1])}
    tail = (1 - confidence) / 2
    bounds = {name: np.quantile(found, [tail, 1 - tail]) for name, found in values.items()}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}


def extrapolate_to_largest(sizes: ArrayLike, errors: ArrayLike, *, reference: ArrayLike = 1.0) -> Extrapolation:
    """Fit without the largest size of the first factor, and compare with what was measured there.

    Raises:
        PipelineError: as in `fit_scaling_law`; too few smaller sizes are left (4, or 5 with two factors).
    """
    factors, measured = _points(sizes, errors)
    _require_sizes(factors, _MIN_SIZES)
    mean = measured.mean(axis=1)
    largest = factors[:, 0].max()
    held_out = factors[:, 0] == largest
    if mean[held_out].mean() == 0:
        raise PipelineError(f"the error at size {largest:g} is 0: a relative error of its prediction is undefined")
    _require_sizes(factors[~held_out], 3 + factors.shape[1])
    law = _fit(factors[~held_out], mean[~held_out], _reference(reference, factors.shape[1]))
    predicted, there = float(law.predict(factors[held_out]).mean()), float(mean[held_out].mean())
    return Extrapolation(law, float(largest), predicted, there, (predicted - there) / there)


def _fit(
    factors: Floats, errors: Floats, reference: Floats, *, exponents: Sequence[Sequence[float]] | None = None
) -> ScalingLaw:
    # Around the middle of the sizes floor, amplitude and exponents hardly depend on each other.
    middle = np.exp(np.log(factors).mean(axis=0))
    log_sizes = np.log(factors / middle)
    span = errors.max() - errors.min()
    if span == 0:
        raise PipelineError(f"all errors are {errors[0]:g}: there is no curve to fit")

    def residuals(parameters: Floats) -> Floats:
        off: Floats = (parameters[0] + parameters[1] * np.exp(-log_sizes @ parameters[2:]) - errors) / span
        return off

    def jacobian(parameters: Floats) -> Floats:
        power = np.exp(-log_sizes @ parameters[2:])
        slopes = -parameters[1] * power[:, None] * log_sizes
        slope: Floats = np.column_stack([np.ones_like(power), power, slopes]) / span
        return slope

    count = factors.shape[1]
    bounds = ([0.0, 0.0, *[1e-6] * count], [errors.max(), np.inf, *[_MAX_EXPONENT] * count])
    best, least = np.zeros(2 + count), np.inf
    if exponents is None:
        exponents = list(itertools.product(_EXPONENTS, repeat=count))
    for share, powers in itertools.product(_FLOORS, exponents):
        start = share * errors.min()
        found = optimize.least_squares(
            residuals,
            [start, max(np.median(errors) - start, 1e-3 * span), *powers],
            jac=jacobian,
            bounds=bounds,
            loss="huber",
            f_scale=_HUBER,
            ftol=_TOLERANCE,
            xtol=_TOLERANCE,
            gtol=_TOLERANCE,
        )
        if found.cost < least:
            best, least = np.asarray(found.x, dtype=np.float64), float(found.cost)
    floor, amplitude, *fitted = (float(value) for value in best)
    at_reference = amplitude * float(np.exp(np.log(middle / reference) @ np.asarray(fitted)))
    rms = float(np.sqrt(np.mean((residuals(best) * span) ** 2)))
    return ScalingLaw(floor, at_reference, tuple(fitted), tuple(map(float, reference)), rms)


def _points(sizes: ArrayLike, errors: ArrayLike) -> tuple[Floats, Floats]:
    factors, measured = _factors(sizes), np.asarray(errors, dtype=np.float64)
    measured = measured[:, None] if measured.ndim == 1 else measured
    if measured.ndim != 2 or len(measured) != len(factors) or measured.shape[1] == 0:
        raise PipelineError(f"{len(factors)} sizes need errors [points] or [points, seeds], got {measured.shape}")
    broken = ~(np.isfinite(measured) & (measured >= 0))
    if broken.any():
        raise PipelineError(f"{int(broken.sum())} error(s) are NaN, infinite or negative, e.g. {measured[broken][0]}")
    return factors, measured


def _factors(sizes: ArrayLike) -> Floats:
    factors = np.asarray(sizes, dtype=np.float64)
    factors = factors[:, None] if factors.ndim == 1 else factors
    if factors.ndim != 2 or factors.shape[1] not in (1, 2):
        raise PipelineError(f"sizes must be [points] or [points, 2], got shape {factors.shape}")
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise PipelineError("sizes must be finite and above 0")
    return factors


def _require_sizes(factors: Floats, least: int) -> None:
    distinct = len(np.unique(factors, axis=0))
    if distinct < least:
        raise PipelineError(
            f"{distinct} distinct sizes cannot carry a scaling law, it needs at least {least}: show the raw curve"
        )
    for column in range(factors.shape[1]):
        if len(np.unique(factors[:, column])) < 2:
            raise PipelineError(f"factor {column} is {factors[0, column]:g} in every run: its exponent is unknowable")


def _reference(reference: ArrayLike, count: int) -> Floats:
    values = np.broadcast_to(np.asarray(reference, dtype=np.float64), (count,))
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise PipelineError(f"reference must be finite and above 0, got {values.tolist()}")
    return values
