"""Whole jobs in this process, hosts that misbehave on purpose, and what they leave on disk."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deltalake import DeltaTable
from tiny import RecordingJournal, tiny_spec

from pipelines.control import ControlTask
from pipelines.evaluation.metrics import PerQuery
from pipelines.job import run_job
from pipelines.job_context import JobContext, TeacherHost
from pipelines.spec import DistillationSpec
from pipelines.teacher.contract import ScoreContract
from pipelines.teacher.engine import load_engine
from pipelines.teacher.scorer import InProcessHost, InProcessScorer, PairScorer, ScoreAnswer, ScoreRequest

Answers = Iterator[tuple[int, np.ndarray]]


@dataclass
class ScriptedHost:
    """Hosts the real teacher; `script` decides in which order, when, and whether it answers.

    The script is given the requests and a function that scores one, and yields answers.
    """

    script: Callable[[Iterable[ScoreRequest], Callable[[ScoreRequest], np.ndarray]], Answers]
    scored: list[ScoreRequest] = field(default_factory=list)
    device_type: str = "cpu"

    @contextmanager
    def host(self, folder: Path, contract: ScoreContract) -> Iterator[PairScorer]:
        engine = load_engine(folder, contract, device=torch.device("cpu"), tokens_per_batch=512)
        outer = self

        def score(request: ScoreRequest) -> np.ndarray:
            outer.scored.append(request)
            return engine.score_pairs(request.pairs)

        class Scripted(InProcessScorer):
            def score_all(self, requests: Iterable[ScoreRequest], *, expected_pairs: int) -> Iterator[ScoreAnswer]:
                assert expected_pairs >= 0
                for key, logits in outer.script(requests, score):
                    yield ScoreAnswer(key, logits, weights_version=0)

        yield Scripted(contract, lambda *_: engine, folder)


def at_once(function: Callable[[ControlTask], PerQuery], task: ControlTask) -> "Future[PerQuery]":
    """A side task that is done before it is asked for."""
    future: Future[PerQuery] = Future()
    future.set_result(function(task))
    return future


def run(
    data_root: Path,
    root: Path,
    spec: DistillationSpec | None = None,
    *,
    job_id: str = "job",
    host: TeacherHost | None = None,
    journal: RecordingJournal | None = None,
    lists_url: str | None = None,
) -> dict[str, Any]:
    """`run_job` on the tiny data set."""
    spec = spec or tiny_spec()
    return run_job(
        JobContext(
            job_id=job_id,
            spec=spec,
            root=root,
            dataset_folder=data_root / spec.dataset.path,
            model_roots=(data_root,),
            host=host or InProcessHost(tokens_per_batch=spec.teacher.tokens_per_batch),
            side_task=at_once,
            side_task_cpus=1,
            journal=journal or RecordingJournal(),
            lists_url=lists_url,
        )
    )


def job_work(root: Path, job_id: str = "job") -> Path:
    """Where a job keeps what it needs to go on."""
    return root / "jobs" / job_id / "work"


def student_bytes(root: Path, job_id: str = "job") -> bytes:
    """The exported weights."""
    return (root / "jobs" / job_id / "artifacts" / "student" / "model.safetensors").read_bytes()


def list_rows(root: Path, job_id: str = "job") -> list[dict[str, Any]]:
    """Every committed row of a job, in every table below the root."""
    rows: list[dict[str, Any]] = []
    for log in root.glob("ranked_lists/*/*/_delta_log"):
        rows += DeltaTable(str(log.parent)).to_pyarrow_table(filters=[("job_id", "=", job_id)]).to_pylist()
    return rows


def within(seconds: float, function: Callable[[], Any]) -> BaseException | None:
    """What `function` raised; fails if it hangs. Tests of errors between threads must not block the test run."""
    raised: list[BaseException | None] = []

    def target() -> None:
        try:
            function()
            raised.append(None)
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            raised.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"still running after {seconds} s"
    return raised[0]
