"""Resuming equals never having stopped, to the last bit; what cannot be resumed is refused, not guessed."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lists_for_tests import CONTRACT, CountingScorer, TextPairs, candidates_of, lists_of
from tiny import tiny_spec
from torch import nn

from pipelines.corpus.dataset import Dataset
from pipelines.devices import seed_everything
from pipelines.errors import CheckpointError, ObjectiveError
from pipelines.ranked.filling import fill_round
from pipelines.ranked.positives import PositiveRule
from pipelines.ranked.table import RankedLists
from pipelines.ranked.tail import StreamPosition, follow
from pipelines.student.model import load_student
from pipelines.training.batches import ListBatch, batches
from pipelines.training.checkpoints import Checkpoints, RunPoint
from pipelines.training.loop import LoopSettings, StepReport, train
from pipelines.training.student_step import StudentStep

NUM_QUERIES, PER_CHUNK, PER_STEP, EPOCHS = 19, 4, 3, 2
STEPS = -(-NUM_QUERIES * EPOCHS // PER_STEP)  # 13; step 7 straddles the epochs


class Killed(Exception):  # noqa: N818
    """Stands for the end of the process: nothing below it may clean up or save."""


@pytest.fixture(scope="module")
def lists(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> RankedLists:
    lists = RankedLists(tmp_path_factory.mktemp("lists"), CONTRACT)
    table = candidates_of(lists_of(dataset, NUM_QUERIES, width=8))
    filled = fill_round(
        table,
        TextPairs(dataset),
        lists,
        CountingScorer(),
        job_id="job",
        round_number=0,
        rows_per_chunk=PER_CHUNK,
        scratch=tmp_path_factory.mktemp("scratch") / "known",
    )
    assert len(list(filled)) == 5
    return lists


@pytest.fixture(scope="module")
def learn(lists: RankedLists, dataset: Dataset, encoder_folder: Path) -> Callable[..., tuple[bytes, list[StepReport]]]:
    """Train a student as rounds do, with dropout; returns its weights as bytes and the reports of this attempt."""
    spec = tiny_spec(training={"objective": [{"name": "list_kl"}, {"name": "info_nce"}], "candidates_per_query": 4})

    def open_batches(start: StreamPosition) -> Iterator[tuple[ListBatch, StreamPosition]]:
        rows = follow(
            lists,
            job_id="job",
            round_number=0,
            num_rows=NUM_QUERIES,
            rows_per_chunk=PER_CHUNK,
            start=start,
            epochs=EPOCHS,
            seed=1,
            wait=lambda: pytest.fail("nothing is missing"),
        )
        rule = PositiveRule(use_labels=True, teacher_top=True, min_confidence=0.2)
        return batches(rows, dataset, queries_per_step=PER_STEP, width=4, rule=rule, seed=1)

    def learn(folder: Path | None, *, kill_at: int = 0, every: int = 2) -> tuple[bytes, list[StepReport]]:
        reports: list[StepReport] = []

        def on_step(report: StepReport) -> None:
            reports.append(report)
            if report.step == kill_at:
                raise Killed

        student = load_student(encoder_folder, spec.student, dropout=0.1, device=torch.device("cpu"))
        seed_everything(5)
        loop = LoopSettings(
            total_steps=STEPS,
            learning_rate=1e-2,
            warmup_ratio=0.2,
            weight_decay=0.01,
            max_grad_norm=1.0,
            checkpoint_every_steps=every,
        )
        with contextlib.suppress(Killed):
            step = StudentStep(student, spec.training.objective)
            train(
                step,
                step,
                open_batches,
                loop,
                on_step=on_step,
                checkpoints=Checkpoints(folder, run_fingerprint="run", keep=2) if folder else None,
            )
        return b"".join(value.numpy().tobytes() for value in student.state_dict().values()), reports

    return learn


@pytest.fixture(scope="module")
def uninterrupted(learn: Callable[..., tuple[bytes, list[StepReport]]]) -> tuple[bytes, list[StepReport]]:
    return learn(None)


def test_dropout_takes_part(learn: Callable[..., tuple[bytes, list[StepReport]]], uninterrupted: object) -> None:
    # Without randomness in the steps the tests below would not notice a forgotten generator state.
    weights, reports = learn(None)
    assert (weights, reports) == uninterrupted, "the run itself must be deterministic"
    assert len(reports) == STEPS
    assert len({report.losses["loss"] for report in reports}) == STEPS


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, STEPS), min_size=1, max_size=3, unique=True).map(sorted), st.sampled_from([1, 2, 5]))
def test_any_kills_leave_no_trace(
    learn: Callable[..., tuple[bytes, list[StepReport]]],
    uninterrupted: tuple[bytes, list[StepReport]],
    tmp_path_factory: pytest.TempPathFactory,
    kills: list[int],
    every: int,
) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    seen: dict[int, StepReport] = {}
    for kill_at in [*kills, 0]:
        weights, reports = learn(folder, kill_at=kill_at, every=every)
        seen |= {report.step: report for report in reports}
    assert weights == uninterrupted[0]
    assert [seen[step] for step in sorted(seen)] == uninterrupted[1]


@pytest.mark.parametrize("kill_at", [6, 7, STEPS])
def test_kills_around_the_end_of_an_epoch_and_of_the_run(
    learn: Callable[..., tuple[bytes, list[StepReport]]],
    uninterrupted: tuple[bytes, list[StepReport]],
    tmp_path: Path,
    kill_at: int,
) -> None:
    learn(tmp_path, kill_at=kill_at, every=1)
    weights, reports = learn(tmp_path, every=1)
    assert weights == uninterrupted[0]
    assert reports[0].step == kill_at, "killed before the checkpoint of its last step, so that step is done again"


def test_a_finished_run_is_not_continued(
    learn: Callable[..., tuple[bytes, list[StepReport]]],
    uninterrupted: tuple[bytes, list[StepReport]],
    tmp_path: Path,
) -> None:
    learn(tmp_path)
    weights, reports = learn(tmp_path)
    assert weights == uninterrupted[0]
    assert reports == []


def test_the_learning_rate_warms_up_and_ends_at_zero(
    learn: Callable[..., tuple[bytes, list[StepReport]]], tmp_path: Path
) -> None:
    _, reports = learn(tmp_path)
    rates = [report.learning_rate for report in reports]
    warmup = round(0.2 * STEPS)
    np.testing.assert_allclose(rates[:warmup], [1e-2 * (i + 1) / warmup for i in range(warmup)])
    assert rates[warmup - 1] == max(rates) == 1e-2
    assert all(a >= b for a, b in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    saved = torch.load(tmp_path / f"step-{STEPS:08d}" / "optimizer.pt", weights_only=True)
    assert saved["scheduler"]["_last_lr"] == [0.0, 0.0]


def tiny_run(folder: Path, *, fingerprint: str = "run", steps: int = 4, keep: int = 2) -> tuple[nn.Linear, RunPoint]:
    """A run of a linear model over endless constant batches."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1)

    def open_batches(start: StreamPosition) -> Iterator[tuple[int, StreamPosition]]:
        for ordinal in range(start.ordinal, 100):
            yield ordinal, StreamPosition(0, ordinal + 1)

    loop = LoopSettings(
        total_steps=steps,
        learning_rate=0.1,
        warmup_ratio=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        checkpoint_every_steps=1,
    )
    point = train(
        model,
        lambda ordinal: {"loss": model(torch.tensor([[1.0, float(ordinal)]])).square().sum()},
        open_batches,
        loop,
        on_step=lambda _: None,
        checkpoints=Checkpoints(folder, run_fingerprint=fingerprint, keep=keep),
    )
    return model, point


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    model, point = tiny_run(tmp_path, steps=5, keep=2)
    assert not model.training, "left in eval mode, ready to be measured"
    assert point == RunPoint(5, StreamPosition(0, 5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    tiny_run(tmp_path, fingerprint="these settings")
    with pytest.raises(CheckpointError, match=r"step-00000004 .*these settings, this run is those settings"):
        tiny_run(tmp_path, fingerprint="those settings")


def test_a_half_written_checkpoint_is_ignored_and_cleared_away(tmp_path: Path) -> None:
    tiny_run(tmp_path, steps=2)
    partial = tmp_path / ".step-00000003.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    _, point = tiny_run(tmp_path, steps=3)
    assert point.step == 3
    assert not partial.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("size", [0, 30, None])
def test_a_damaged_checkpoint_is_an_error_that_names_it(tmp_path: Path, name: str, size: int | None) -> None:
    # Starting over silently would throw hours away; the raw error of some library would help nobody.
    tiny_run(tmp_path)
    file = tmp_path / "step-00000004" / name
    if size is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="step-00000004 cannot be read"):
        tiny_run(tmp_path)


def test_a_checkpoint_holds_no_code(tmp_path: Path) -> None:
    # Weights-only loadable: a checkpoint folder that someone could write to must not become remote execution.
    tiny_run(tmp_path)
    newest = tmp_path / "step-00000004"
    assert sorted(path.name for path in newest.iterdir()) == ["model.safetensors", "optimizer.pt", "state.json"]
    torch.load(newest / "optimizer.pt", weights_only=True)
    assert json.loads((newest / "state.json").read_text(encoding="utf-8"))["ordinal"] == 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_raises_and_leaves_the_weights(tmp_path: Path, bad: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    after: list[bytes] = []

    def losses_of(ordinal: int) -> dict[str, torch.Tensor]:
        after.append(model.weight.detach().numpy().tobytes())
        return {"loss": model(torch.ones(1, 2)).sum() * (bad if ordinal == 2 else 1.0)}

    with pytest.raises(ObjectiveError, match="at step 3"):
        train_linear(model, losses_of)
    assert model.weight.detach().numpy().tobytes() == after[2]


def test_a_gradient_that_is_not_finite_raises_and_leaves_the_weights() -> None:
    # The loss may still be finite: the square root at 0 has an infinite slope.
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()

    def losses_of(_: int) -> dict[str, torch.Tensor]:
        return {"loss": model(torch.ones(1, 2)).sqrt().sum()}

    with pytest.raises(ObjectiveError, match=r"gradient.*at step 1"):
        train_linear(model, losses_of)
    assert model.weight.tolist() == [[0.0, 0.0]]


def train_linear(model: nn.Module, losses_of: Callable[[int], dict[str, torch.Tensor]]) -> None:
    loop = LoopSettings(
        total_steps=5,
        learning_rate=0.1,
        warmup_ratio=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        checkpoint_every_steps=9,
    )

    def open_batches(start: StreamPosition) -> Iterator[tuple[int, StreamPosition]]:
        for ordinal in range(start.ordinal, 9):
            yield ordinal, StreamPosition(0, ordinal + 1)

    train(model, losses_of, open_batches, loop, on_step=lambda _: None)
