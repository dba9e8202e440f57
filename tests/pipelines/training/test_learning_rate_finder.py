"""The range test.

Why: it trains the very model that is to be trained afterwards. What it leaves behind, one weight or one random number,
would change every result in silence; and a suggestion read from a curve that never fell would be noise.
"""

import itertools
import random
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipelines.errors import DataError, ObjectiveError
from pipelines.training.learning_rate_finder import RateCurve, find_learning_rate


class Regressor(nn.Module):
    """A little of everything that has a state: dropout, running statistics, a frozen weight."""

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(dropout), nn.Linear(16, 1))
        self.frozen = nn.Parameter(torch.ones(()), requires_grad=False)
        self.layers[2].eval()

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        inputs, targets = batch
        return {"loss": (self.frozen * self.layers(inputs).squeeze(1) - targets).square().mean()}


def regression(seed: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, generator=generator)
    while True:
        inputs = torch.randn(64, 8, generator=generator)
        yield inputs, inputs @ weight


def everything(model: nn.Module) -> list[object]:
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
    python, numpy = random.getstate(), np.random.get_state()
    modes = [module.training for module in model.modules()]
    return [
        *(tensor.detach().clone().numpy().tobytes() for tensor in tensors),
        torch.get_rng_state().numpy().tobytes(),
        repr(numpy),
        python,
        modes,
    ]


@pytest.mark.parametrize("fails_at", [None, 0, 30])
def test_nothing_is_left_behind(fails_at: int | None) -> None:
    """Gradients that were there, generators, running statistics, modes: bit for bit, also when a loss raises."""
    model = Regressor(dropout=0.2)
    model.losses(next(regression()))["loss"].backward()
    before = everything(model)
    grads = [id(parameter.grad) for parameter in model.parameters()]
    calls = itertools.count()

    def losses_of(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        random.random()  # noqa: S311
        np.random.random()
        if next(calls) == fails_at:
            raise RuntimeError("no batch")
        return model.losses(batch)

    if fails_at is None:
        find_learning_rate(model, losses_of, regression())
    else:
        with pytest.raises(RuntimeError, match="no batch"):
            find_learning_rate(model, losses_of, regression())
    assert everything(model) == before
    assert [id(parameter.grad) for parameter in model.parameters()] == grads


def test_what_is_not_the_models_gets_no_gradient() -> None:
    model, other = Regressor(), nn.Parameter(torch.ones(()))
    find_learning_rate(model, lambda batch: {"loss": other * model.losses(batch)["loss"]}, regression())
    assert other.grad is None


def test_the_curve_is_adamw_at_a_rising_rate() -> None:
    model = Regressor()
    curve = find_learning_rate(model, model.losses, regression(), lowest=1e-4, highest=1e-1, steps=40)
    ratios = [after / before for before, after in itertools.pairwise(curve.rates)]
    assert (curve.rates[0], curve.rates[-1]) == pytest.approx((1e-4, 1e-1))
    assert ratios == pytest.approx([ratios[0]] * 39)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.0)
    model.train()
    expected = []
    for rate, batch in zip(curve.rates, regression(), strict=False):
        loss = model.losses(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        expected.append(loss.item())
    assert list(curve.losses) == pytest.approx(expected, rel=1e-6)


def test_the_suggested_rate_trains_and_far_lower_and_higher_ones_do_worse() -> None:
    """What a user wants of it."""
    model = Regressor()
    curve = find_learning_rate(model, model.losses, regression(), highest=10.0)
    lowest = curve.rates[int(np.argmin(curve.smoothed))]
    assert curve.rates[0] < curve.suggestion <= lowest / 10 * (1 + 1e-9)

    def after(rate: float) -> float:
        fresh = Regressor()
        optimizer = torch.optim.AdamW(fresh.layers.parameters(), lr=rate, weight_decay=0.0)
        losses = []
        for batch in itertools.islice(regression(), 100):
            optimizer.zero_grad()
            fresh.losses(batch)["loss"].backward()
            optimizer.step()
            losses.append(fresh.losses(batch)["loss"].item())
        return float(np.mean(losses[-10:]))

    found = after(curve.suggestion)
    assert found < 0.5 * after(curve.suggestion / 30)
    assert found < 0.5 * after(curve.suggestion * 1000)


def test_it_stops_when_the_loss_explodes() -> None:
    model = Regressor()
    curve = find_learning_rate(model, model.losses, regression(), highest=1e4)
    assert curve.diverged
    assert len(curve.rates) == len(curve.losses) == len(curve.smoothed) < 100
    assert not find_learning_rate(model, model.losses, regression(), highest=1e-1).diverged


def test_a_loss_that_is_not_finite_ends_the_curve_and_is_not_in_it() -> None:
    model = Regressor()
    calls = itertools.count()

    def losses_of(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        loss = model.losses(batch)["loss"]
        return {"loss": loss if next(calls) < 90 else loss * float("nan")}

    curve = find_learning_rate(model, losses_of, regression())
    assert curve.diverged
    assert len(curve.losses) == 90
    assert np.isfinite(curve.losses).all()


def curve_of(values: Iterable[float], **options: float) -> RateCurve:
    """The test on a model whose loss is what it is told."""
    weight = nn.Linear(1, 1, bias=False)
    return find_learning_rate(
        weight, lambda value: {"loss": value + 0 * weight.weight.sum()}, torch.tensor(list(values)), **options
    )


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_no_fall(seed: int) -> None:
    with pytest.raises(ObjectiveError, match="never falls"):
        curve_of(np.random.default_rng(seed).normal(1, 0.1, 100))


@given(centre=st.floats(-4.5, -3.5), noise=st.floats(0, 0.02), seed=st.integers(0, 99))
def test_the_suggestion_is_where_the_loss_falls_most_steeply(centre: float, noise: float, seed: int) -> None:
    exponents = np.linspace(-6, -1, 100)
    fall = 1 - 0.8 / (1 + np.exp(-4 * (exponents - centre)))
    values = fall + np.exp(6 * (exponents + 1.4)) + np.random.default_rng(seed).normal(0, noise, 100)
    curve = curve_of(values)
    assert abs(np.log10(curve.suggestion) - centre) < 0.1 + 15 * noise
    assert curve.suggestion <= curve.rates[int(np.argmin(curve.smoothed))] / 10
    if noise == 0:
        assert list(curve.losses) == pytest.approx(values[: len(curve.losses)].tolist())


def test_the_suggestion_is_a_tenth_of_the_minimums_rate_where_the_fall_is_steep_to_the_end() -> None:
    exponents = np.linspace(-6, -1, 100)
    values = np.where(exponents < -3, 1, np.where(exponents < -2, -2 - exponents, 2.0))
    curve = curve_of(values)
    assert curve.suggestion == pytest.approx(curve.rates[int(np.argmin(curve.smoothed))] / 10)


def test_a_model_at_its_best_has_no_rate_to_be_found() -> None:
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    with pytest.raises(ObjectiveError, match="never falls"):
        find_learning_rate(model, lambda _: {"loss": model.weight.square().sum() + 1}, itertools.repeat(0))


def test_a_test_that_begins_too_high_says_so() -> None:
    with pytest.raises(ObjectiveError, match="begin lower"):
        curve_of(2 + np.abs(np.arange(100) - 15) / 10)


def test_too_few_batches_and_impossible_arguments_are_refused() -> None:
    model = Regressor()
    with pytest.raises(DataError, match="100 batches, the stream has 7"):
        find_learning_rate(model, model.losses, itertools.islice(regression(), 7))
    with pytest.raises(ValueError, match="19 steps"):
        find_learning_rate(model, model.losses, regression(), steps=19)
    with pytest.raises(ValueError, match="lowest < highest"):
        find_learning_rate(model, model.losses, regression(), lowest=1.0)
    with pytest.raises(ObjectiveError, match="nan before the first step"):
        find_learning_rate(model, lambda b: {"loss": model.losses(b)["loss"] * float("nan")}, regression())
