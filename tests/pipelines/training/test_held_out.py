"""Held-out queries decide which weights are kept and when training ends, and no kill changes what they decide.

Why: the best weights are written while training goes on, between two checkpoints. Whoever dies there must neither lose
them nor find those of a step that, after resuming, never was.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipelines.ranked.tail import StreamPosition
from pipelines.training import checkpoints
from pipelines.training.checkpoints import Checkpoints, RunPoint
from pipelines.training.held_out import Best, HeldOutCheck
from pipelines.training.loop import LoopSettings, StepReport, train

MEASURES = st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3]), min_size=1, max_size=9)


class Killed(Exception):  # noqa: N818
    """Stands for the end of the process: nothing below it may clean up or save."""


class Run:
    """A linear model, noise in every step, and a measure that was written down beforehand, by step."""

    def __init__(
        self,
        folder: Path,
        measures: list[float],
        *,
        total: int,
        every: int = 1,
        patience: int | None = None,
        batches: int = 99,
        checkpoint_every: int = 2,
        kill_at: int = 0,
    ) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(3, 1)
        self.weights_after: dict[int, Tensor] = {}
        self.reports: list[StepReport] = []
        self.measured: list[int] = []
        step = 0

        def losses_of(number: int) -> dict[str, Tensor]:
            nonlocal step
            step = number + 1
            return {"loss": self.model(torch.randn(4, 3)).square().mean()}

        def after_update() -> None:
            self.weights_after[step] = self.model.weight.detach().clone()

        def measure() -> float:
            assert not self.model.training
            self.measured.append(step)
            return measures[(step - 1) // every]

        def on_step(report: StepReport) -> None:
            self.reports.append(report)
            if report.step == kill_at:
                raise Killed

        def open_batches(start: StreamPosition) -> Iterator[tuple[int, StreamPosition]]:
            nonlocal step
            step = start.ordinal
            return ((i, StreamPosition(0, i + 1)) for i in range(start.ordinal, batches))

        self.point = train(
            self.model,
            losses_of,
            open_batches,
            LoopSettings(
                total_steps=total,
                learning_rate=0.1,
                warmup_ratio=0,
                weight_decay=0.0,
                max_grad_norm=1.0,
                checkpoint_every_steps=checkpoint_every,
            ),
            on_step=on_step,
            checkpoints=Checkpoints(folder, run_fingerprint="run", keep=1),
            after_update=after_update,
            held_out=HeldOutCheck(measure=measure, every_steps=every, patience=patience),
        )


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


@given(MEASURES, st.integers(1, 4) | st.none())
def test_training_ends_when_patience_does_and_the_first_of_the_best_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, measures: list[float], patience: int | None
) -> None:
    """By the definition: `patience` measures in a row without a better one than any before."""
    folder = tmp_path_factory.mktemp("run")
    run = Run(folder, measures, total=len(measures), patience=patience)
    best = stopped = 0
    for place, value in enumerate(measures):
        best = place if value > measures[best] else best
        stopped = place
        if patience is not None and place - best >= patience:
            break
    assert run.point.step == len(run.reports) == stopped + 1
    assert run.point.best == Best(best + 1, measures[best])
    assert [report.held_out for report in run.reports] == measures[: stopped + 1]
    assert torch.equal(run.model.weight, run.weights_after[best + 1])
    assert not run.model.training
    assert folders(folder) == [f"best-{best + 1:08d}", f"step-{stopped + 1:08d}"], "older ones are gone"


def test_the_measure_has_its_rhythm_and_the_last_step_is_always_measured(tmp_path: Path) -> None:
    run = Run(tmp_path, [0.3, 0.1, 0.2], total=8, every=3)
    assert run.measured == [3, 6, 8]
    assert [report.step for report in run.reports if report.held_out is not None] == [3, 6, 8]
    assert run.point.best == Best(3, 0.3)


@pytest.mark.parametrize("checkpoint_every", [1, 5, 7, 99])
def test_a_stream_that_ends_early_is_measured_where_it_ends(tmp_path: Path, checkpoint_every: int) -> None:
    """Lists that nothing can be learned from make fewer steps than planned; the last of them are not thrown away."""
    for _ in range(2):  # the second time it is resumed where it ended
        run = Run(tmp_path, [0.1, 0.2, 0.3], total=50, every=3, batches=7, checkpoint_every=checkpoint_every)
        assert run.measured[-1:] == [7]
        assert run.point.best == Best(7, 0.3)
        assert run.point.step == 7
        last = run.weights_after.get(7, run.model.weight)
        assert torch.equal(run.model.weight, last)


def test_a_run_that_was_stopped_early_is_not_gone_on_with(tmp_path: Path) -> None:
    first = Run(tmp_path, [0.2, 0.1, 0.0, 0.9], total=4, patience=2)
    again = Run(tmp_path, [0.2, 0.1, 0.0, 0.9], total=4, patience=2)
    assert first.point == again.point == RunPoint(3, StreamPosition(0, 3), Best(1, 0.2))
    assert again.reports == again.measured == []
    assert torch.equal(again.model.weight, first.model.weight)


def test_best_weights_need_somewhere_to_be_kept() -> None:
    model = nn.Linear(1, 1)
    check = HeldOutCheck(measure=lambda: 0.0, every_steps=1, patience=None)
    loop = LoopSettings(
        total_steps=1, learning_rate=1, warmup_ratio=0, weight_decay=0, max_grad_norm=1, checkpoint_every_steps=1
    )
    with pytest.raises(ValueError, match="none is given"):
        train(model, lambda _: {}, lambda _: iter(()), loop, on_step=lambda _: None, held_out=check)


FILE_OPERATIONS: tuple[tuple[Any, str], ...] = (
    (checkpoints, "save_file"),
    (torch, "save"),
    (os, "fsync"),
    (shutil, "rmtree"),
    *((Path, name) for name in ("write_text", "rename", "mkdir")),
)


def dying_at(patch: pytest.MonkeyPatch, number: int) -> Callable[[], int]:
    """The process ends at the `number`-th thing it does to the disk; returns how many were tried."""
    done = 0

    def counted(right: Callable[..., Any], *, really: bool) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            done += 1
            if done >= number:
                raise Killed
            return right(*args, **kwargs) if really else None

        return operation

    for owner, name in FILE_OPERATIONS:
        patch.setattr(owner, name, counted(getattr(owner, name), really=name != "fsync"))
    return lambda: done


UPS_AND_DOWNS = [0.1, 0.3, 0.2, 0.3, 0.5, 0.4]


def run_until(folder: Path, number: int, checkpoint_every: int, patience: int | None) -> tuple[Run | None, int]:
    """A run that dies of its `number`-th operation on the disk, None then; and how many it did."""
    with pytest.MonkeyPatch.context() as patch:
        count = dying_at(patch, number)
        with contextlib.suppress(Killed):
            run = Run(folder, UPS_AND_DOWNS, total=6, checkpoint_every=checkpoint_every, patience=patience)
            return run, count()
        return None, count()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int | None], tuple[Run | None, int]]:
    settings = [(every, patience) for every in (1, 2, 4) for patience in (None, 2)]
    return {each: run_until(tmp_path_factory.mktemp("whole"), 10**9, *each) for each in settings}


@given(st.lists(st.integers(1, 100), min_size=1, max_size=3), st.sampled_from([1, 2, 4]), st.sampled_from([None, 2]))
def test_whatever_operation_on_the_disk_is_the_last_nothing_is_lost(
    uninterrupted: dict[tuple[int, int | None], tuple[Run, int]],
    tmp_path_factory: pytest.TempPathFactory,
    kills: list[int],
    checkpoint_every: int,
    patience: int | None,
) -> None:
    """Between writing, renaming and clearing away, of checkpoints and of best weights, several times over."""
    whole, _ = uninterrupted[checkpoint_every, patience]
    folder = tmp_path_factory.mktemp("killed")
    for number in kills:
        run_until(folder, number, checkpoint_every, patience)
    again, _ = run_until(folder, 10**9, checkpoint_every, patience)
    assert again is not None
    assert again.point == whole.point
    assert torch.equal(again.model.weight, whole.model.weight)
    assert again.reports == whole.reports[len(whole.reports) - len(again.reports) :]
    assert {f"best-{whole.point.best.step:08d}", f"step-{whole.point.step:08d}"} <= set(folders(folder))
    assert not [name for name in folders(folder) if name.endswith(".partial")]


def test_the_kills_above_reach_every_operation(uninterrupted: dict[Any, tuple[Run, int]]) -> None:
    """Guards the guard: a run does about as many as are tried."""
    counts = [count for _, count in uninterrupted.values()]
    assert 15 < min(counts) < max(counts) <= 100


def test_a_kill_after_better_weights_and_before_the_checkpoint_forgets_both(tmp_path: Path) -> None:
    """Step 3 was best and is on disk, but the newest checkpoint is of step 2: that one's best still stands."""
    with pytest.raises(Killed):
        Run(tmp_path, [0.2, 0.1, 0.9, 0.3], total=4, kill_at=3)
    assert folders(tmp_path) == ["best-00000001", "best-00000003", "step-00000002"]
    state = json.loads((tmp_path / "step-00000002" / "state.json").read_text(encoding="utf-8"))
    assert state["best"] == {"step": 1, "value": 0.2}
    again = Run(tmp_path, [0.2, 0.1, 0.0, 0.0], total=4)
    assert again.point.best == Best(1, 0.2), "as if step 3 had never been measured as 0.9"
    assert folders(tmp_path) == ["best-00000001", "step-00000004"]
