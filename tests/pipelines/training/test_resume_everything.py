"""Everything that training can switch on, at once, killed anywhere and gone on with: the same to the last bit.

Why: each of them keeps something between steps - a queue, two slow copies, draws of dropout, prefixes, mixtures and
negatives, the best weights so far - and a checkpoint that forgets one of them still trains.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lists_for_tests import CONTRACT, CountingScorer, TextPairs, candidates_of, lists_of
from steps_for_tests import spec_of, student_of

from pipelines.corpus.dataset import Dataset
from pipelines.devices import seed_everything
from pipelines.ranked.filling import fill_round
from pipelines.ranked.positives import PositiveRule
from pipelines.ranked.table import RankedLists
from pipelines.ranked.tail import StreamPosition, follow
from pipelines.spec import MomentumSpec, NegativeSampling
from pipelines.training.batches import ListBatch, batches
from pipelines.training.checkpoints import Checkpoints, RunPoint
from pipelines.training.dev_set import DevSet, dev_ndcg
from pipelines.training.encoding import EncodingSettings
from pipelines.training.held_out import HeldOutCheck
from pipelines.training.loop import LoopSettings, StepReport, train
from pipelines.training.student_step import StudentStep

NUM_QUERIES, PER_CHUNK, PER_STEP, EPOCHS = 10, 4, 3, 2
STEPS = -(-NUM_QUERIES * EPOCHS // PER_STEP)  # 7; step 4 straddles the epochs
SPEC = spec_of(
    [{"name": "list_kl"}, {"name": "mochi"}, {"name": "info_nce", "learn": ["temperature"]}],
    num_layers=1,
    matryoshka={"dimensions": [24, 16, 8], "dimensions_per_step": 1},
)
LOOP = LoopSettings(
    total_steps=STEPS,
    learning_rate=1e-2,
    warmup_ratio=0.2,
    weight_decay=0.01,
    max_grad_norm=1.0,
    checkpoint_every_steps=2,
    learning_rates={"learned": 1e-2},
)


class Killed(Exception):  # noqa: N818
    """Stands for the end of the process: nothing below it may clean up or save."""


@dataclass
class Outcome:
    """What a run, or what is left of one, came to."""

    state: dict[str, bytes]
    reports: list[StepReport]
    point: RunPoint | None


@pytest.fixture(scope="module")
def learn(dataset: Dataset, encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    lists = RankedLists(tmp_path_factory.mktemp("lists"), CONTRACT)
    scratch = tmp_path_factory.mktemp("scratch") / "known"
    table = candidates_of(lists_of(dataset, NUM_QUERIES, width=8))
    filling = {"job_id": "job", "round_number": 0, "rows_per_chunk": PER_CHUNK}
    list(fill_round(table, TextPairs(dataset), lists, CountingScorer(), scratch=scratch, **filling))
    qrels = dataset.judged("test")
    dev = DevSet(
        qrels, tuple(dict.fromkeys([*(doc for grades in qrels.values() for doc in grades), "d3", "d9", "d40"]))
    )
    student = student_of(encoder_folder, SPEC, dropout=0.1)
    start = {name: value.clone() for name, value in student.state_dict().items()}

    def open_batches(position: StreamPosition) -> Iterator[tuple[ListBatch, StreamPosition]]:
        rows = follow(
            lists,
            num_rows=NUM_QUERIES,
            start=position,
            epochs=EPOCHS,
            seed=1,
            wait=lambda: pytest.fail("nothing is missing"),
            **filling,
        )
        return batches(
            rows,
            dataset,
            queries_per_step=PER_STEP,
            width=4,
            rule=PositiveRule(use_labels=True, teacher_top=True, min_confidence=0.2),
            seed=1,
            negatives=NegativeSampling(strategy="simans"),
        )

    def learn(folder: Path, *, kill_at: int = 0) -> Outcome:
        reports: list[StepReport] = []

        def on_step(report: StepReport) -> None:
            reports.append(report)
            if report.step == kill_at:
                raise Killed

        student.load_state_dict(start)
        seed_everything(5)
        step = StudentStep(
            student,
            SPEC.training.objective,
            encoding=EncodingSettings(tokens_per_micro_batch=100, gradient_cache=True),
            momentum=MomentumSpec(queue_size=17, decay=0.9),
            ema_decay=0.7,
        )
        point = None
        with contextlib.suppress(Killed):
            point = train(
                step,
                step,
                open_batches,
                LOOP,
                on_step=on_step,
                checkpoints=Checkpoints(
                    folder, run_fingerprint="run", keep=2, facts=lambda: {"table_version": lists.version}
                ),
                after_update=step.follow_weights,
                held_out=HeldOutCheck(
                    measure=lambda: dev_ndcg(step.outcome, dataset, dev), every_steps=3, patience=None
                ),
            )
        state = {name: value.numpy().tobytes() for name, value in step.state_dict().items()}
        return Outcome(state, reports, point)

    return learn


@pytest.fixture(scope="module")
def whole(learn: Callable[..., Outcome], tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return learn(folder), folder


def test_everything_took_part(whole: tuple[Outcome, Path]) -> None:
    """Without that the test below would prove less than it says."""
    outcome, folder = whole
    assert len(outcome.reports) == STEPS
    assert [report.step for report in outcome.reports if report.held_out is not None] == [3, 6, 7]
    assert len({report.losses["matryoshka_invariance"] for report in outcome.reports}) == STEPS
    assert len({report.losses["info_nce.temperature"] for report in outcome.reports}) == STEPS
    assert int.from_bytes(outcome.state["queue.filled"], "little") == 17
    three = [{n: v for n, v in outcome.state.items() if n.startswith(who)} for who in ("student.", "averaged.", "mom")]
    assert len({b"".join(state.values()) for state in three}) == 3
    best = outcome.point.best
    assert best.value == max(report.held_out for report in outcome.reports if report.held_out is not None)
    assert sorted(path.name for path in folder.iterdir()) == [
        f"best-{best.step:08d}",
        "step-00000006",
        f"step-{STEPS:08d}",
    ]
    state = json.loads((folder / f"step-{STEPS:08d}" / "state.json").read_text(encoding="utf-8"))
    assert state["facts"]["table_version"] >= 3, "which lists the run had read, for whoever looks at it later"


@settings(max_examples=5)
@given(st.lists(st.integers(1, STEPS), min_size=1, max_size=2, unique=True).map(sorted))
def test_any_kills_leave_no_trace(
    learn: Callable[..., Outcome],
    whole: tuple[Outcome, Path],
    tmp_path_factory: pytest.TempPathFactory,
    kills: list[int],
) -> None:
    """Student, averages, queue, learned numbers; every report; the best step, and its weights loaded at the end."""
    folder = tmp_path_factory.mktemp("checkpoints")
    seen: dict[int, StepReport] = {}
    for kill_at in [*kills, 0]:
        outcome = learn(folder, kill_at=kill_at)
        seen |= {report.step: report for report in outcome.reports}
    assert outcome.state == whole[0].state
    assert outcome.point == whole[0].point
    assert [seen[step] for step in sorted(seen)] == whole[0].reports
