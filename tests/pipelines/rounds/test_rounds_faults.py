"""Crashes, slow and reordering teachers, errors on either side: none changes the student, none hangs."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs_for_tests import Answers, ScriptedHost, list_rows, run, student_bytes, within
from tiny import RecordingJournal, tiny_spec

from pipelines.corpus.dataset import Dataset
from pipelines.errors import Cancelled, DataError, RankedListsError
from pipelines.pretrained import load_folder_tokenizer
from pipelines.ranked.log import FileEntry
from pipelines.ranked.table import RankedLists
from pipelines.teacher.scorer import ScoreRequest

Score = Callable[[ScoreRequest], np.ndarray]
SPEC = tiny_spec(
    rounds=2,
    dataset={"path": "data", "unlabelled": {"max_queries": 14, "min_confidence": 0.2}},
    training={
        "epochs": 2,
        "queries_per_step": 5,
        "candidates_per_query": 4,
        "dropout": 0.1,
        "checkpoint_every_steps": 2,
    },
)
# 26 queries, 6 chunks and 11 steps in each round.


class Crash(Exception):  # noqa: N818
    """Stands for kill -9: what was not on disk by now is lost."""


@pytest.fixture(scope="module")
def undisturbed(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    root = tmp_path_factory.mktemp("undisturbed")
    run(tiny_root, root, SPEC)
    return student_bytes(root)


def crash_when(condition: Callable[[dict[str, Any]], bool]) -> RecordingJournal:
    journal = RecordingJournal()

    def on_progress(numbers: dict[str, Any]) -> None:
        if condition(numbers):
            raise Crash

    journal.on_progress = on_progress
    return journal


def assert_same_and_once(root: Path, undisturbed: bytes) -> None:
    assert student_bytes(root) == undisturbed
    counted = Counter((row["round"], row["query_id"]) for row in list_rows(root))
    assert set(counted.values()) == {1}
    assert Counter(number for number, _ in counted) == {0: 26, 1: 26, -1: 8}


@settings(max_examples=3, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 11)), min_size=1, max_size=2, unique=True).map(sorted))
def test_a_crash_at_any_step_leaves_no_trace(
    tiny_root: Path,
    tmp_path_factory: pytest.TempPathFactory,
    undisturbed: bytes,
    crashes: list[tuple[int, int]],
) -> None:
    root = tmp_path_factory.mktemp("crash")
    for place in crashes:
        journal = crash_when(lambda numbers, place=place: (numbers.get("round"), numbers.get("step")) == place)
        with pytest.raises(Crash):
            run(tiny_root, root, SPEC, journal=journal)
    run(tiny_root, root, SPEC)
    assert_same_and_once(root, undisturbed)


@pytest.mark.parametrize(("seen", "committed"), [(1, 5), (1, 20), (2, 26), (2, 31)])
def test_a_crash_while_scoring_leaves_no_trace(
    tiny_root: Path, tmp_path: Path, undisturbed: bytes, seen: int, committed: int
) -> None:
    # The crash comes after the chunk's commit, when a job that has no idea of it starts again.
    rounds: list[int] = []

    def condition(numbers: dict[str, Any]) -> bool:
        if numbers.get("lists_committed") == 5:
            rounds.append(1)
        return len(rounds) == seen and numbers.get("lists_committed") == committed

    raised = within(60, lambda: run(tiny_root, tmp_path, SPEC, journal=crash_when(condition)))
    assert isinstance(raised, Crash)
    run(tiny_root, tmp_path, SPEC)
    assert_same_and_once(tmp_path, undisturbed)


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 200))
def test_a_crash_at_any_word_to_the_journal_leaves_no_trace(
    tiny_root: Path, tmp_path_factory: pytest.TempPathFactory, undisturbed: bytes, call: int
) -> None:
    # Phases, events, progress, cancellation checks: together they are everywhere between mining and publishing.
    left = [call]

    class Mortal(RecordingJournal):
        def _count(self) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Crash

        def phase(self, name: str) -> None:
            self._count()

        def progress(self, **numbers: float | str) -> None:
            self._count()

        def event(self, type_: str, message: str, **data: Any) -> None:
            self._count()

        def check_cancelled(self) -> None:
            self._count()

    root = tmp_path_factory.mktemp("mortal")
    raised = within(60, lambda: run(tiny_root, root, SPEC, journal=Mortal()))
    assert raised is None or isinstance(raised, Crash)
    run(tiny_root, root, SPEC)
    assert_same_and_once(root, undisturbed)


def test_a_finished_job_that_runs_again_changes_nothing(tiny_root: Path, tmp_path: Path, undisturbed: bytes) -> None:
    # The driver may die between the last artifact and the word that the job succeeded.
    first = run(tiny_root, tmp_path, SPEC)
    journal = RecordingJournal()
    second = run(tiny_root, tmp_path, SPEC, journal=journal)
    assert first["evaluation"] == second["evaluation"]
    assert "step" not in journal.numbers
    assert_same_and_once(tmp_path, undisturbed)


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_the_order_of_answers_does_not_matter(
    tiny_root: Path, tmp_path: Path, undisturbed: bytes, seed: int | None
) -> None:
    # One replica or twenty, fast or slow: the same student, to the last bit.
    def script(requests: Iterable[ScoreRequest], score: Score) -> Answers:
        waiting = list(requests)
        order = np.random.default_rng(seed).permutation(len(waiting)) if seed else range(len(waiting))[::-1]
        for i in order:
            yield waiting[i].key, score(waiting[i])

    run(tiny_root, tmp_path, SPEC, host=ScriptedHost(script))
    assert_same_and_once(tmp_path, undisturbed)


def test_training_begins_while_scoring_goes_on(tiny_root: Path, tmp_path: Path) -> None:
    # The scorer withholds its second chunk until the student has made a step: if training waited, this would fail.
    stepped = threading.Event()
    journal = RecordingJournal()
    journal.on_progress = lambda numbers: stepped.set() if numbers.get("step") == 1 else None

    def script(requests: Iterable[ScoreRequest], score: Score) -> Answers:
        for request in requests:
            if request.key > 0:
                assert stepped.wait(30), "no training step while the second chunk was being scored"
            yield request.key, score(request)

    assert within(60, lambda: run(tiny_root, tmp_path, host=ScriptedHost(script), journal=journal)) is None
    order = [name for name, _ in journal.events]
    assert order.index("training.started") < order.index("scoring.finished")


def test_an_error_of_the_scorer_reaches_the_caller(tiny_root: Path, tmp_path: Path) -> None:
    def script(requests: Iterable[ScoreRequest], score: Score) -> Answers:
        for request in requests:
            if request.key == 2:
                raise RuntimeError("replica on fire")
            yield request.key, score(request)

    journal = RecordingJournal()
    raised = within(30, lambda: run(tiny_root, tmp_path, host=ScriptedHost(script), journal=journal))
    assert isinstance(raised, RuntimeError)
    assert str(raised) == "replica on fire"
    assert not journal.named("training.finished")
    # What was committed stays, and the next attempt goes on from it.
    second = ScriptedHost(lambda requests, score: ((request.key, score(request)) for request in requests))
    run(tiny_root, tmp_path, host=second)
    assert second.scored[0].key == 2


def test_an_error_in_the_test_lists_ends_a_training_that_needs_no_more_lists(
    tiny_root: Path, tmp_path: Path, dataset: Dataset
) -> None:
    # Else the student would learn on for hours before anyone heard that the job cannot be finished.
    broken = threading.Event()
    tokenize = load_folder_tokenizer(tiny_root / "teacher")
    test_queries = {
        tuple(tokenize(dataset.query_text(query), add_special_tokens=False)["input_ids"])
        for query in dataset.labelled_queries("test")
    }

    def script(requests: Iterable[ScoreRequest], score: Score) -> Answers:
        for request in requests:
            queries = request.pairs.queries
            if test_queries & {tuple(queries[row].tolist()) for row in range(len(queries))}:
                broken.set()
                raise RuntimeError("replica on fire")
            yield request.key, score(request)

    journal = RecordingJournal()
    journal.on_progress = lambda numbers: None if "step" not in numbers else _wait(broken)
    spec = tiny_spec(training={"epochs": 40, "queries_per_step": 4, "candidates_per_query": 4})
    raised = within(60, lambda: run(tiny_root, tmp_path, spec, host=ScriptedHost(script), journal=journal))
    assert isinstance(raised, RuntimeError)
    assert float(journal.numbers.get("step", 0)) < 160  # it may end before the first step, never after the last


def _wait(event: threading.Event) -> None:
    assert event.wait(30)


def test_an_error_in_training_stops_the_scoring(tiny_root: Path, tmp_path: Path) -> None:
    # A pool of GPUs must not go on for a job that has failed.
    failed = threading.Event()

    def script(requests: Iterable[ScoreRequest], score: Score) -> Answers:
        for request in requests:
            if request.key > 0:
                assert failed.wait(30)
            yield request.key, score(request)

    def on_progress(numbers: dict[str, Any]) -> None:
        if "step" in numbers:
            failed.set()
            raise Crash

    journal = RecordingJournal()
    journal.on_progress = on_progress
    host = ScriptedHost(script)
    assert isinstance(within(30, lambda: run(tiny_root, tmp_path, host=host, journal=journal)), Crash)
    assert len(host.scored) <= 3, "of 7 chunks and 2 of test lists"
    assert not journal.named("scoring.finished")


@pytest.mark.parametrize("when", ["before", "scoring", "training"])
def test_a_cancelled_job_stops_as_cancelled_and_can_go_on(tiny_root: Path, tmp_path: Path, when: str) -> None:
    journal = RecordingJournal()

    def on_progress(numbers: dict[str, Any]) -> None:
        journal.cancelled |= ("lists_committed" if when == "scoring" else "step") in numbers

    journal.on_progress = on_progress
    journal.cancelled = when == "before"
    assert isinstance(within(30, lambda: run(tiny_root, tmp_path, journal=journal)), Cancelled)
    assert not (tmp_path / "jobs" / "job" / "artifacts" / "student").exists()
    run(tiny_root, tmp_path)
    assert student_bytes(tmp_path)


def test_a_list_that_never_comes_is_an_error_and_no_hang(tiny_root: Path, tmp_path: Path) -> None:
    # A scorer that forgets a request and says it is done: waiting for that chunk would be waiting for ever.
    def script(requests: Iterable[ScoreRequest], score: Score) -> Answers:
        for request in requests:
            if request.key != 3:
                yield request.key, score(request)

    raised = within(30, lambda: run(tiny_root, tmp_path, host=ScriptedHost(script)))
    assert isinstance(raised, RankedListsError)
    assert "first 3" in str(raised)


def test_a_committed_list_that_is_gone_is_an_error_and_no_hang(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Somebody vacuumed or restored the table under a running job.
    whole = RankedLists.files

    def without_the_third(lists: RankedLists, *place: str | int) -> list[FileEntry]:
        return [entry for entry in whole(lists, *place) if not entry.first_chunk <= 3 <= entry.last_chunk]

    monkeypatch.setattr(RankedLists, "files", without_the_third)
    raised = within(30, lambda: run(tiny_root, tmp_path))
    assert isinstance(raised, RankedListsError)
    assert "a chunk of its lists is missing" in str(raised)


def test_lists_from_which_nothing_can_be_learned_are_an_error(tiny_root: Path, tmp_path: Path) -> None:
    # One candidate a query, and no labels: the "trained" student would be the untrained one.
    spec = tiny_spec(
        dataset={"path": "data", "train_split": None},
        candidates={"bm25": {"top_k": 1}, "dense": None, "max_candidates": 4},
    )
    with pytest.raises(DataError, match="none of 32 ranked lists"):
        run(tiny_root, tmp_path, spec)
